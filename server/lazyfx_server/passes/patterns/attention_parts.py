"""The parts of an attention in a graph, and the views between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from lazyfx_server.passes.analysis.called_operators import KnownValues, first_operand, operator_name
from lazyfx_server.passes.analysis.operator_facts import words

_VIEWS = words(
    "view reshape _unsafe_view _reshape_alias flatten unflatten squeeze unsqueeze expand clone "
    "contiguous"
)
_METADATA_CHECK = "_assert_tensor_metadata"


@dataclass(frozen=True, slots=True)
class Mask:
    """An additive mask of the scores, or a boolean mask that replaces them by a number.

    Attributes:
        node: The additive or boolean mask.
        shape: Sizes of the scores where it is applied.
        fill: The number that replaces masked scores; None for an additive mask.
        hides: Whether a boolean mask hides where it is true, not where it is false.
    """

    node: Node
    shape: tuple[int, ...]
    fill: float | None = None
    hides: bool = True


@dataclass(frozen=True, slots=True)
class Attention:
    """The parts of one attention.

    Attributes:
        query: Left operand of the product that computes the scores.
        key: Its right operand, already transposed.
        value: Right operand of the last product.
        scale: The number by which the scores are multiplied.
        factors: (operator, zero-dimensional tensor) pairs by which they are also multiplied or
            divided.
        masks: In the order in which they are applied.
        shape: Sizes of the scores in the softmax.
        inner: Its intermediate nodes.
    """

    query: Node
    key: Node
    value: Node
    scale: float = 1.0
    factors: tuple[tuple[str, Node], ...] = ()
    masks: tuple[Mask, ...] = ()
    shape: tuple[int, ...] = ()
    inner: tuple[Node, ...] = ()

    def inner_holds(self, nodes: Sequence[Node]) -> bool:
        """Whether nodes have no other users."""
        return all(node in self.inner for node in nodes)

    @property
    def operands(self) -> Iterator[Node]:
        """The operands from outside."""
        yield from (self.query, self.key, self.value)
        yield from (node for _, node in self.factors)
        yield from (mask.node for mask in self.masks)


def view_source(node: object, known: KnownValues) -> Node | None:
    """The source of a view or copy that keeps rows and columns in order."""
    if not isinstance(node, Node) or operator_name(node) not in _VIEWS:
        return None
    source = first_operand(node)
    before, after = known.tensor(source), known.tensor(node)
    if before is None or after is None or before.dtype != after.dtype:
        return None
    same = before.numel() == after.numel() and before.shape[-2:] == after.shape[-2:]
    return source if same and isinstance(source, Node) else None


def transposed(node: Node, known: KnownValues) -> Node | None:
    """The source of a transpose of the last two dimensions."""
    if operator_name(node) not in {"transpose", "permute", "swapaxes"}:
        return None
    source = first_operand(node)
    value = known.tensor(source)
    if value is None or not isinstance(source, Node):
        return None
    dims = value.ndim
    order = list(range(dims))
    given: Any = node.args[1:]
    flat = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
    places = [d % dims for d in flat if type(d) is int and dims]
    if operator_name(node) == "permute":
        return source if places == [*order[:-2], dims - 1, dims - 2] else None
    return source if sorted(places) == order[-2:] else None


def checks(node: Node) -> list[Node]:
    """The metadata assertions that captures add to a node."""
    return [user for user in node.users if operator_name(user) == _METADATA_CHECK]


def readers(node: Node) -> list[Node]:
    """The users of a node, except metadata assertions."""
    return [user for user in node.users if operator_name(user) != _METADATA_CHECK]

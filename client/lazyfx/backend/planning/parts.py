"""A graph of AOTAutograd in two pieces: what is sent, and what is only handed on.

Some inputs are neither tensors nor numbers: the device mesh of a DTensor, the ragged size of a
jagged tensor. AOTAutograd puts them into the results so that its wrapper can build such tensors
from them. They are left out of what is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import Graph, GraphModule, Node

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.native.torch_inductor import backed_values

_Code = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Computing:
    """The piece of a graph that computes.

    Attributes:
        module: The graph without results that are inputs or constants, and without inputs that
            only these need.
        inputs: The positions of its inputs among those of the whole graph.
        results: For each result of the whole graph: a position among the results of this one, or
            None.
        given: For each result of the whole graph that is an input: the position of that input.
        constants: The other results, by their position.
        strides: The strides of each of its own results; None where it is no tensor, or they are
            symbolic.
    """

    module: GraphModule
    inputs: tuple[int, ...]
    results: tuple[int | None, ...]
    given: dict[int, int]
    constants: dict[int, Any]
    strides: tuple[tuple[int, ...] | None, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return all(node.op in ("placeholder", "output") for node in self.module.graph.nodes)


class Part:
    """A graph of AOTAutograd as a function of a list of inputs, once it has its code.

    Attributes:
        code: A function of the inputs of the piece that computes; None if there is no such piece.

    Args:
        computing: That piece. Its graph is not kept.
    """

    def __init__(self, computing: Computing) -> None:
        self.code: _Code | None = None
        self._inputs, self._results = computing.inputs, computing.results
        self._given, self._constants = computing.given, computing.constants
        self._strides = computing.strides
        # AOTAutograd passes a list, which is emptied so that nothing keeps the inputs alive. It
        # looks for this in wrappers too, which copy only what the instance has.
        self._boxed_call = True

    def __call__(self, inputs: list[Any]) -> list[Any]:
        """Run the code."""
        given = {place: inputs[number] for place, number in self._given.items()}
        arguments = [inputs[number] for number in self._inputs]
        inputs.clear()
        results: Sequence[Any] = self.code(*arguments) if self.code is not None else ()
        return [
            _with_strides(results[number], self._strides[number])
            if number is not None
            else given.get(place, self._constants.get(place))
            for place, number in enumerate(self._results)
        ]


def computing_part(module: GraphModule) -> Computing:
    """Take the part of a graph of AOTAutograd that computes.

    Raises:
        UnsupportedGraphError: It uses an input that cannot be sent; names the input.
    """
    graph = Graph()
    copies: dict[Node, Node] = {}
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        users = [user for user in node.users if user.op != "output"]
        if users and _is_opaque(node.meta.get("val")):
            kind = _kind(node.meta["val"])
            raise UnsupportedGraphError(
                f"an input is a {kind}, which means something only in this process, and "
                f"{users[0].name!r} uses it",
                node=node.name,
                remedy="use it outside of the compiled function",
            )
        if users or not _is_opaque(node.meta.get("val")):
            copies[node] = graph.node_copy(node)
    for node in module.graph.nodes:
        if node.op not in ("placeholder", "output"):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    (whole,) = module.graph.output_node().args
    assert isinstance(whole, (tuple, list)), "graphs of AOTAutograd return a tuple"
    numbers = {node: number for number, node in enumerate(placeholders)}
    computed = [each for each in whole if isinstance(each, Node) and each not in numbers]
    places = {node: place for place, node in enumerate(dict.fromkeys(computed))}
    graph.output(tuple(copies[node] for node in places))
    return Computing(
        module=GraphModule(module, graph),
        inputs=tuple(numbers[node] for node in placeholders if node in copies),
        results=tuple(places.get(each) if isinstance(each, Node) else None for each in whole),
        given={
            place: numbers[each]
            for place, each in enumerate(whole)
            if isinstance(each, Node) and each in numbers
        },
        constants={place: each for place, each in enumerate(whole) if not isinstance(each, Node)},
        strides=tuple(_strides(node.meta.get("val")) for node in places),
    )


def _is_opaque(value: object) -> bool:
    if isinstance(value, torch.SymInt):
        return _is_ragged(value)
    plain = (torch.Tensor, torch.SymFloat, torch.SymBool, bool, int, float)
    return value is not None and not isinstance(value, plain)


def _is_ragged(size: torch.SymInt) -> bool:
    """Whether it is the size of a jagged tensor that differs from row to row."""
    symbol = getattr(size.node, "expr", None)
    if symbol is None:
        return True
    hint = backed_values(size.node.shape_env).get(symbol)
    return hint is not None and not isinstance(hint, (int, float, sympy.Number))


def _kind(value: Any) -> str:
    if isinstance(value, torch.SymInt):
        return "size of a jagged tensor"
    return type(getattr(value, "real_obj", value)).__name__


def _strides(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    strides = tuple(value.stride())
    return strides if all(type(stride) is int for stride in strides) else None


def _with_strides(value: Any, strides: tuple[int, ...] | None) -> Any:
    """A result as the backward, and AOTAutograd's wrapper, expect it."""
    if strides is None or _are_equal(value.shape, value.stride(), strides):
        return value
    # Where the stride is 0, all elements are one: it is written once, and then repeated.
    once = value[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides)]
    made = torch.empty_strided(tuple(once.shape), strides, dtype=value.dtype, device=value.device)
    return made.copy_(once).expand(value.shape)


def _are_equal(sizes: Sequence[int], found: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether elements lie at the same places: a dimension of size 1 may have any stride."""
    each = zip(sizes, found, wanted, strict=True)
    return 0 in sizes or all(size == 1 or stride == other for size, stride, other in each)

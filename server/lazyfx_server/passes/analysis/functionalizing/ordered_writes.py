"""Keeps the order of a graph's writes to its inputs and attributes while it is functionalized.

`torch.func.functionalize` performs all writes to inputs at the end. That is right only if no two
inputs share memory: where they do, a read of one sees what was written to the other. So a write is
performed before the first call that uses another tensor which may be in the same memory, and that
tensor is read again. Writes after which no such call follows still happen at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from lazyfx_server.passes.analysis.attribute_memory import memories_in, memory_of
from lazyfx_server.passes.analysis.called_operators import operator_name
from lazyfx_server.passes.analysis.effects import Effects, effects_of
from lazyfx_server.passes.analysis.functionalizing.torch_functional_tensors import (
    current_value,
    has_other_sizes,
    set_value,
)
from lazyfx_server.passes.analysis.operator_facts import words
from lazyfx_server.passes.analysis.walk import attribute_at, target_name


class ChangedSizesError(Exception):
    """A call changes the sizes of an input or an attribute, which no `copy_` can do."""


class WrittenTogetherError(Exception):
    """A call writes two tensors that may share memory, in an order that only its kernel knows."""


@dataclass(frozen=True, eq=False)
class GivenTensor:
    """A tensor that a graph is given: an input or an attribute.

    Attributes:
        memory: Equal for attributes that share memory, otherwise unique.
        is_input: Whether it is an input, which may share memory with any other tensor given.
        raw: The tensor in the trace; writes to it are recorded.
        wrapper: The functional tensor that the graph's calls get instead of it.
    """

    memory: Hashable
    is_input: bool
    raw: Tensor
    wrapper: Tensor

    def may_overlap(self, other: GivenTensor) -> bool:
        """Whether some element of the two may be in the same memory."""
        related = self.is_input or other.is_input or self.memory == other.memory
        some = self.raw.numel() > 0 and other.raw.numel() > 0
        return self is not other and related and some and self.raw.device == other.raw.device


class OrderedWrites:
    """Performs writes to the given tensors of a graph in time.

    Args:
        graph: The graph that is run.
        inputs: For each placeholder, its tensor in the trace and its functional tensor, or None.
        attributes: For each path of an attribute, the same.
    """

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[tuple[Tensor, Tensor] | None],
        attributes: dict[str, tuple[Tensor, Tensor]],
    ) -> None:
        self._owner = graph.owning_module
        self._reaches: dict[Node, frozenset[Hashable]] = {}
        self._given: list[GivenTensor] = []
        placeholders = graph.find_nodes(op="placeholder")
        for node, pair in zip(placeholders, inputs, strict=True):
            self._reaches[node] = frozenset((node,))
            if pair is not None:
                self._given.append(GivenTensor(node, True, *pair))
        for path, pair in attributes.items():
            value = attribute_at(self._owner, path)
            assert isinstance(value, Tensor)
            self._given.append(GivenTensor(memory_of(value), False, *pair))
        self._pending: list[GivenTensor] = []

    def before(self, node: Node) -> None:
        """Performs the pending writes that a call could see, before it runs.

        Raises:
            ChangedSizesError: The write changed the sizes of its tensor.
        """
        if self._pending:
            used = self._uses(node)
            touched = [given for given in self._given if given.memory in used]
            if any(one.may_overlap(other) for one in self._pending for other in touched):
                self.perform()

    def after(self, node: Node) -> None:
        """Notes what a call may have written."""
        effects = effects_of(node) if node.op != "output" else None
        if node.op != "placeholder":
            aliases = effects.aliases if effects else node.all_input_nodes
            reached = self._reached(aliases)
            if node.op == "get_attr":
                reached |= set(memories_in(attribute_at(self._owner, str(node.target))))
            self._reaches[node] = reached or frozenset((node,))
        if node.op.startswith("call_"):
            self.note_writes(node)

    def note_writes(self, node: Node) -> None:
        """Notes that a call may have written what its effects say.

        Raises:
            WrittenTogetherError: Two of the tensors that it writes may share memory.
        """
        effects = effects_of(node)
        if effects.pure:
            return
        written = self._uses(node) if node.op == "call_module" else self._reached(effects.writes)
        self._check_apart(node)
        for given in self._given:
            if given.memory in written and given not in self._pending:
                self._pending.append(given)

    def writes_one_by_one(self, node: Node) -> bool:
        """Whether a call writes a list of tensors of which two may be in the same memory."""
        return target_name(node.target).startswith("_foreach_") and self._may_share(node)

    def _check_apart(self, node: Node) -> None:
        of_list = target_name(node.target).startswith("_foreach_")
        if of_list or any(word in operator_name(node) for word in _STATISTICS):
            return
        if self._may_share(node):
            raise WrittenTogetherError(f"{node.name} writes two tensors that may share memory")

    def _may_share(self, node: Node) -> bool:
        """Whether two of the tensors that a call writes may be in the same memory."""
        written = [self._reached([operand]) for operand in effects_of(node).writes]
        for some, others in combinations(written, 2):
            groups = [[g for g in self._given if g.memory in found] for found in (some, others)]
            if some & others or any(one.may_overlap(other) for one, other in product(*groups)):
                return True
        return False

    def perform(self) -> None:
        """Performs all pending writes; every given tensor that may have changed is read again.

        Raises:
            ChangedSizesError: A write changed the sizes of its tensor.
        """
        written = []
        for given in self._pending:
            value = current_value(given.wrapper)
            if has_other_sizes(given.wrapper):
                raise ChangedSizesError("the graph changes the sizes of an input or attribute")
            if value is not given.raw:
                given.raw.copy_(value)
                written.append(given)
        self._pending = []
        for given in self._given:
            if any(given is one or given.may_overlap(one) for one in written):
                set_value(given.wrapper, given.raw)

    def _uses(self, node: Node) -> frozenset[Hashable]:
        """The memory of given tensors that a call may read or write."""
        found = self._reached(node.all_input_nodes)
        if node.op in ("get_attr", "call_module"):
            found |= set(memories_in(attribute_at(self._owner, str(node.target))))
        return found

    def _reached(self, nodes: Iterable[Node]) -> frozenset[Hashable]:
        return frozenset[Hashable]().union(*(self._reaches[node] for node in nodes))


def used_after_write(
    module: GraphModule, may_overlap: Callable[[int, int], bool]
) -> tuple[int, int] | None:
    """Places of two inputs, of which the second may be used after the first is written.

    If both are in one memory, a compiler that performs writes at the end gets another result.

    Args:
        module: The graph.
        may_overlap: Whether the inputs at two places may be in one memory.
    """
    reaches: dict[Node, frozenset[int]] = {}
    written: set[int] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            reaches[node] = frozenset((len(reaches),))
            continue
        used = frozenset[int]().union(*(reaches[n] for n in node.all_input_nodes))
        if node.op == "output":
            break
        effects = effects_of(node)
        here = frozenset[int]().union(*(reaches[n] for n in effects.writes))
        for one, other in product(sorted(written), sorted(used)):
            if one != other and may_overlap(one, other):
                return one, other
        for one, other in combinations(sorted(here), 2):
            if may_overlap(one, other):
                return one, other
        reaches[node] = frozenset[int]().union(*(reaches[n] for n in effects.aliases))
        written |= here
    return None


# Operators that write statistics, which have memory of their own.
_STATISTICS = ("batch_norm", "instance_norm", "fake_quant")
# Views of which torch does not say so: a write to one is not seen through its operand.
_SECRET_VIEWS = words("_unsafe_view unsafe_split unsafe_split_with_sizes unsafe_chunk")
# Views through which autograd does not follow a write, or follows it in its own way.
_UNFOLLOWED_VIEWS = words("detach data as_strided")
# A view or a copy, depending on the strides that a value happens to have.
_VIEWS_OR_COPIES = words("contiguous reshape flatten ravel reshape_as")
# Calls whose results are contiguous, whatever the strides of their operands.
_CONTIGUOUS = words("linear mm bmm addmm zeros ones full")


def write_that_tracing_changes(module: GraphModule, *, trains: bool) -> str:
    """Why tracing would change what a write does: the call and the reason, or "".

    Args:
        module: The graph.
        trains: Whether a tensor requires grad.
    """
    views: dict[Node, str] = {}
    # The memory that such a view, or what may be one, may share.
    secret: dict[Node, set[Hashable]] = {}
    may_copy: dict[Node, set[Hashable]] = {}
    reaches: dict[Node, set[Hashable]] = {}
    written: set[Hashable] = set()
    for node in module.graph.nodes:
        if node.op == "output":
            break
        effects = effects_of(node) if node.op.startswith("call_") else Effects()
        through = [views[n] for n in effects.writes if n in views]
        if through:
            return f"{node.name} writes through {through[0]}"
        if trains and _scales_weights(node, effects):
            return f"{node.name} scales its weight without autograd"
        reaches[node] = _reached_by(node, effects, reaches)
        here = set[Hashable]().union(*(reaches[n] for n in effects.writes))
        if reason := _shown_by_others(node, here, secret, may_copy):
            return reason
        written |= here
        name = operator_name(node)
        kind = _kind_of_view(node, name)
        inherited = [views[n] for n in effects.aliases if n in views]
        if kind or inherited:
            views[node] = kind or inherited[0]
        if name in _SECRET_VIEWS:
            secret[node] = reaches[node]
        if name in _VIEWS_OR_COPIES or _flattens(node):
            may_copy[node] = _of_unknown_strides(reaches[node], effects)
            if any(n in written for n in may_copy[node] if _is_input(n)):
                return f"{node.name} is a view or a copy of an input that is written"
    return ""


def _shown_by_others(
    node: Node,
    written: set[Hashable],
    secret: dict[Node, set[Hashable]],
    may_copy: dict[Node, set[Hashable]],
) -> str:
    """Why tracing would not show what a call writes through an earlier view, or ""."""
    for view, memories in secret.items():
        if memories & written:
            return (
                f"{node.name} writes what {view.name} shows, whose result is not known to be a view"
            )
    for view, memories in may_copy.items():
        if memories & written:
            return f"{view.name} is a view or a copy of what {node.name} writes"
    return ""


def _reached_by(node: Node, effects: Effects, reaches: dict[Node, set[Hashable]]) -> set[Hashable]:
    """The memory that the result of a node may be in: the nodes that made it, or attributes."""
    if node.op == "get_attr":
        return set(memories_in(attribute_at(node.graph.owning_module, str(node.target))))
    return set[Hashable]().union(*(reaches[n] for n in effects.aliases)) or {node}


def _of_unknown_strides(memories: set[Hashable], effects: Effects) -> set[Hashable]:
    """The memory of values that a later call may be given, or may make, with other strides."""
    operands = effects.aliases
    return {m for m in memories if not (m in operands and _is_contiguous(m))}


def _is_contiguous(value: object) -> bool:
    if not isinstance(value, Node):
        return False
    if value.op == "call_module":
        called = attribute_at(value.graph.owning_module, str(value.target))
        return isinstance(called, nn.Linear)
    return operator_name(value) in _CONTIGUOUS and "out" not in value.kwargs


def _is_input(value: object) -> bool:
    return isinstance(value, Node) and value.op == "placeholder"


def _flattens(node: Node) -> bool:
    """Whether a called module may return a view or a copy of its input."""
    if node.op != "call_module":
        return False
    called = attribute_at(node.graph.owning_module, str(node.target))
    parts = called.modules() if isinstance(called, nn.Module) else ()
    return any(
        isinstance(part, nn.Flatten)
        or (
            isinstance(part, GraphModule)
            and any(operator_name(inner) in _VIEWS_OR_COPIES for inner in part.graph.nodes)
        )
        for part in parts
    )


def _scales_weights(node: Node, effects: Effects) -> bool:
    """Whether an embedding scales down rows of its weight, which it does without autograd."""
    if node.op != "call_module":
        return operator_name(node).startswith("embedding") and bool(effects.writes)
    called = attribute_at(node.graph.owning_module, str(node.target))
    parts = called.modules() if isinstance(called, nn.Module) else ()
    return any(getattr(part, "max_norm", None) is not None for part in parts)


def _kind_of_view(node: Node, name: str) -> str:
    if name in _SECRET_VIEWS:
        return f"{name}, whose result is not known to be a view"
    casts = name == "view" and any(isinstance(value, torch.dtype) for value in node.args)
    of_getattr = node.target is getattr and node.args[1:] == ("data",)
    # Whatever the metadata says: a graph may be called with tensors that require grad.
    if name in _UNFOLLOWED_VIEWS or casts or of_getattr:
        return f"{name or 'data'}, which autograd does not follow"
    return ""

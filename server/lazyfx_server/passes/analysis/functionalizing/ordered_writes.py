"""Keeps the order of a graph's writes to its inputs and attributes while it is functionalized.

`torch.func.functionalize` performs all writes to inputs at the end. That is right only if no two
inputs share memory: where they do, a read of one sees what was written to the other. So a write is
performed before the first call that uses another tensor which may be in the same memory, and that
tensor is read again. Writes after which no such call follows still happen at the end.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from torch import Tensor
from torch.fx import Graph, Node

from lazyfx_server.passes.analysis.attribute_memory import memories_in, memory_of
from lazyfx_server.passes.analysis.called_operators import operator_name
from lazyfx_server.passes.analysis.effects import effects_of
from lazyfx_server.passes.analysis.functionalizing.torch_functional_tensors import (
    current_value,
    has_other_sizes,
    set_value,
)
from lazyfx_server.passes.analysis.operator_facts import words
from lazyfx_server.passes.analysis.walk import attribute_at, target_name

# Operators that write statistics, which have memory of their own.
_STATISTICS = words("batch_norm instance_norm fake_quant")


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

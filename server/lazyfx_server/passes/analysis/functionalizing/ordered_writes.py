"""Keeps the order of a graph's writes to its inputs and attributes while it is functionalized.

`torch.func.functionalize` performs all writes to inputs at the end. That is right only if no two
inputs share memory: where they do, a read of one sees what was written to the other. So a write is
performed before the first call that uses another tensor which may be in the same memory, and that
tensor is read again. Writes after which no such call follows still happen at the end.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

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

    def places(self) -> Iterator[Hashable]:
        """Where it is: what overlaps it looks at one of these; none if it has no elements."""
        if self.raw.numel() > 0:
            yield (self.raw.device, "memory", self.memory)
            yield (self.raw.device, "input" if self.is_input else "attribute")

    def looks_at(self) -> Iterator[Hashable]:
        """The places of other tensors that it may overlap."""
        if self.raw.numel() > 0:
            yield (self.raw.device, "input")
            if self.is_input:
                yield (self.raw.device, "attribute")
            else:
                yield (self.raw.device, "memory", self.memory)


class GivenTensors:
    """A growing set of given tensors, which is told quickly whether another may overlap one."""

    def __init__(self) -> None:
        self.members: dict[GivenTensor, None] = {}
        self._places = Counter[Hashable]()

    def add(self, given: Iterable[GivenTensor]) -> None:
        """Adds those that it lacks."""
        for one in given:
            if one not in self.members:
                self.members[one] = None
                self._places.update(one.places())

    def may_overlap(self, given: GivenTensor) -> bool:
        """Whether a member, not this one itself, may have an element in the same memory."""
        own = set(given.places()) if given in self.members else ()
        return any(self._places[place] > (place in own) for place in given.looks_at())


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
        # The memory of each tensor of a list that one call made.
        self._lists: dict[Node, list[Hashable]] = {}
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
        self._in_memory: dict[Hashable, list[GivenTensor]] = {}
        for given in self._given:
            self._in_memory.setdefault(given.memory, []).append(given)
        self._order = {given: place for place, given in enumerate(self._given)}
        self._pending = GivenTensors()

    def before(self, node: Node) -> None:
        """Performs the pending writes that a call could see, before it runs.

        Raises:
            ChangedSizesError: The write changed the sizes of its tensor.
        """
        pending = self._pending
        if pending.members and any(map(pending.may_overlap, self._given_in(self._uses(node)))):
            self.perform()

    def after(self, node: Node) -> None:
        """Notes what a call may have written."""
        effects = effects_of(node) if node.op != "output" else None
        if node.op != "placeholder":
            aliases = effects.aliases if effects else node.all_input_nodes
            reached = self._part(node) or self._reached(aliases)
            if node.op == "get_attr":
                reached |= set(memories_in(attribute_at(self._owner, str(node.target))))
            self._reaches[node] = reached or self._new_memory(node)
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
        self._pending.add(sorted(self._given_in(written), key=self._order.__getitem__))

    def writes_one_by_one(self, node: Node) -> bool:
        """Whether a call writes a list of tensors of which two may be in the same memory."""
        return _is_of_list(node) and self._may_share(node)

    def _check_apart(self, node: Node) -> None:
        if _is_of_list(node) or any(word in operator_name(node) for word in _STATISTICS):
            return
        if self._may_share(node):
            raise WrittenTogetherError(f"{node.name} writes two tensors that may share memory")

    def _may_share(self, node: Node) -> bool:
        """Whether two of the tensors that a call writes may be in the same memory."""
        found, seen = set[Hashable](), GivenTensors()
        for operand in effects_of(node).writes:
            reached = self._reaches[operand]
            given = [*self._given_in(reached)]
            if not found.isdisjoint(reached) or any(map(seen.may_overlap, given)):
                return True
            found |= reached
            seen.add(given)
        return False

    def perform(self) -> None:
        """Performs all pending writes; every given tensor that may have changed is read again.

        Raises:
            ChangedSizesError: A write changed the sizes of its tensor.
        """
        written = GivenTensors()
        for given in self._pending.members:
            value = current_value(given.wrapper)
            if has_other_sizes(given.wrapper):
                raise ChangedSizesError("the graph changes the sizes of an input or attribute")
            if value is not given.raw:
                given.raw.copy_(value)
                written.add([given])
        self._pending = GivenTensors()
        for given in self._given if written.members else ():
            if given in written.members or written.may_overlap(given):
                set_value(given.wrapper, given.raw)

    def _uses(self, node: Node) -> frozenset[Hashable]:
        """The memory of given tensors that a call may read or write."""
        found = self._reached(node.all_input_nodes)
        if node.op in ("get_attr", "call_module"):
            found |= set(memories_in(attribute_at(self._owner, str(node.target))))
        return found

    def _new_memory(self, node: Node) -> frozenset[Hashable]:
        """The memory of a value that shares none: that of each tensor, if they are a list."""
        lists = [v for v in node.args if isinstance(v, list | tuple)] if _is_of_list(node) else []
        if not lists:
            return frozenset((node,))
        self._lists[node] = [(node, place) for place in range(len(lists[0]))]
        return frozenset(self._lists[node])

    def _part(self, node: Node) -> frozenset[Hashable]:
        """The memory of what a node takes out of a list of new tensors; empty if unknown."""
        if node.target is not operator.getitem:
            return frozenset()
        whole, place = node.args
        parts = self._lists.get(whole, ()) if isinstance(whole, Node) else ()
        if isinstance(place, int) and -len(parts) <= place < len(parts):
            return frozenset((parts[place],))
        return frozenset()

    def _given_in(self, memories: Iterable[Hashable]) -> Iterator[GivenTensor]:
        """The tensors in this memory, in no fixed order."""
        return chain.from_iterable(self._in_memory.get(memory, ()) for memory in memories)

    def _reached(self, nodes: Iterable[Node]) -> frozenset[Hashable]:
        return frozenset[Hashable]().union(*(self._reaches[node] for node in nodes))


def _is_of_list(node: Node) -> bool:
    """Whether a call computes each tensor of a list by itself."""
    return target_name(node.target).startswith("_foreach_")

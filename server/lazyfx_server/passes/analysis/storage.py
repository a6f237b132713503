"""Which values of a graph may share storage, and when storage is written."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Hashable
from collections.abc import Set as AbstractSet
from typing import TypeAlias

from torch import nn
from torch.fx import Graph, Node

from lazyfx_server.passes.analysis.attribute_memory import holds_graph, memories_in
from lazyfx_server.passes.analysis.effects import Effects, effects_of, has_effects
from lazyfx_server.passes.analysis.module_effects import written_parts
from lazyfx_server.passes.analysis.walk import attribute_at

# A node, or the memory of an attribute.
_Member: TypeAlias = Hashable


class StorageMap:
    """The storage of a graph's values, as classes that may overlap.

    Inputs are one class: a caller may pass the same tensor twice. So are attributes that share
    memory, whatever their names and the graphs and modules that hold them. An input may be a tensor
    of the module, so a write to an input counts for every attribute, and a write to an attribute
    for every input. Positions are those of the nodes when the map was created; removing nodes does
    not invalidate it.

    Args:
        graph: The graph.
        frozen: Attributes are taken as they are now, as by passes that fold them: inputs that are
            tensors of the module do not count.
    """

    def __init__(self, graph: Graph, *, frozen: bool = False) -> None:
        self._parent: dict[_Member, _Member] = {}
        self.position: dict[Node, int] = {}
        self.effects: dict[Node, Effects] = {}
        self._held: dict[Node, tuple[_Member, ...]] = {}
        hidden: dict[Node, tuple[_Member, ...]] = {}
        for position, node in enumerate(graph.nodes):
            self.position[node] = position
            effects = self.effects[node] = effects_of(node)
            self._join(node, node)
            for operand in effects.aliases:
                self._join(node, operand)
            if node.op == "placeholder":
                self._join(node, _INPUTS)
            elif node.op == "get_attr":
                self._join(node, ("path", node.target))
                for memory in memories_in(attribute_at(graph.owning_module, str(node.target))):
                    self._join(node, memory)
            elif node.op == "call_module":
                hidden[node] = self._called(graph, node)
        self._attributes: frozenset[_Member] = frozenset()
        self._writes: defaultdict[_Member, list[int]] = defaultdict(list)
        for node, effects in self.effects.items():
            for written in (*effects.writes, *hidden.get(node, ())):
                self._writes[self._root(written)].append(self.position[node])
        if not frozen:
            self._relate_inputs_to_attributes(graph)
        self._escaping = self._find_escaping(graph)

    def _called(self, graph: Graph, node: Node) -> tuple[_Member, ...]:
        """Notes the memory that a called module reads; returns what the call writes of it."""
        called = attribute_at(graph.owning_module, str(node.target))
        if not isinstance(called, nn.Module):
            return ()
        self._held[node] = tuple(dict.fromkeys(memories_in(called)))
        if holds_graph(called):
            for memory in self._held[node]:
                self._join(node, memory)
        if self.effects[node].pure:
            return ()
        parts = written_parts(called, has_effects)
        return tuple(dict.fromkeys(memory for part in parts for memory in memories_in(part)))

    def _relate_inputs_to_attributes(self, graph: Graph) -> None:
        """Lets writes to inputs count for attributes, and the other way round."""
        held = {self._root(memory) for memories in self._held.values() for memory in memories}
        read = {self._root(node) for node in graph.find_nodes(op="get_attr")}
        inputs = self._root(_INPUTS)
        attributes = self._attributes = frozenset((held | read) - {inputs})
        to_inputs = self._writes.get(inputs, [])
        to_attributes = [place for root in attributes for place in self._writes.get(root, [])]
        if to_inputs:
            for root in attributes:
                self._writes[root] = sorted({*self._writes.get(root, []), *to_inputs})
        if to_attributes:
            self._writes[inputs] = sorted({*to_inputs, *to_attributes})

    def writes_before(self, node: Node, position: int) -> int:
        """How many writes to the storage of `node` happen before `position`."""
        return bisect_left(self._writes.get(self._root(node), []), position)

    def held_writes_before(self, node: Node, position: int) -> tuple[int, ...]:
        """The same for each tensor of the module that `node` calls, if it calls one."""
        roots = (self._writes.get(self._root(memory), []) for memory in self._held.get(node, ()))
        return tuple(bisect_left(writes, position) for writes in roots)

    def written_after(self, node: Node) -> bool:
        """Whether the storage of `node` is written after it is computed."""
        writes = self._writes.get(self._root(node), [])
        return bisect_right(writes, self.position[node]) < len(writes)

    def written_between(self, node: Node, start: int, end: int, ignoring: frozenset[int]) -> bool:
        """Whether the storage of `node` is written at a position in [start, end).

        Args:
            node: The node.
            start: The first position that counts.
            end: The first position that no longer counts.
            ignoring: Positions whose writes do not count.
        """
        writes = self._writes.get(self._root(node), [])
        return any(
            place not in ignoring
            for place in writes[bisect_left(writes, start) : bisect_left(writes, end)]
        )

    def used_between(self, writer: Node, start: int, end: int, ignoring: AbstractSet[Node]) -> bool:
        """Whether a call at a position in [start, end) may use storage that `writer` writes.

        Args:
            writer: A call; it counts as one that writes all its operands.
            start: The first position that counts.
            end: The first position that no longer counts.
            ignoring: Nodes that do not count.
        """
        written = self._used(writer)
        return any(
            start <= place < end
            and node not in ignoring
            and not written.isdisjoint(self._used(node))
            for node, place in self.position.items()
            if node.op.startswith("call_")
        )

    def _used(self, node: Node) -> frozenset[_Member]:
        """The classes of what a call reads, writes and returns; an input may be any attribute."""
        members = (node, *node.all_input_nodes, *self._held.get(node, ()))
        roots = {self._root(member) for member in members}
        if roots & self._attributes:
            roots.add(self._root(_INPUTS))
        return frozenset(roots)

    def written(self, node: Node) -> bool:
        """Whether the storage of `node` is written at all."""
        return self.written_memory(node)

    def held_written(self, node: Node) -> bool:
        """Whether a tensor of the module that `node` calls, if it calls one, is written."""
        return any(map(self.written_memory, self._held.get(node, ())))

    def written_memory(self, memory: Hashable) -> bool:
        """Whether memory (`attribute_memory.memory_of`) is written by the graph, or a node's is."""
        return bool(self._writes.get(self._root(memory)))

    def escapes(self, node: Node) -> bool:
        """Whether the graph may return the storage of `node` to its caller."""
        return node in self._escaping

    def _find_escaping(self, graph: Graph) -> set[Node]:
        escaping: set[Node] = set()
        for node in reversed(graph.nodes):
            if node.op == "output":
                escaping.update(node.all_input_nodes)
            elif node in escaping:
                escaping.update(self.effects[node].aliases)
        return escaping

    def _root(self, member: _Member) -> _Member:
        root = member
        while (above := self._parent.get(root, root)) != root:
            root = above
        while member != root:
            above = self._parent[member]
            self._parent[member], member = root, above
        return root

    def _join(self, one: _Member, other: _Member) -> None:
        self._parent[self._root(one)] = self._root(other)


_INPUTS = ("inputs",)

"""Which values of a graph may share storage, and when storage is written."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict

from torch.fx import Graph, Node

from lazyfx_server.passes.analysis.effects import Effects, effects_of


class StorageMap:
    """The storage of a graph's values, as classes that may overlap.

    Inputs are one class: a caller may pass the same tensor twice. Positions are those of the nodes
    when the map was created; removing nodes does not invalidate it.
    """

    def __init__(self, graph: Graph) -> None:
        self._parent: dict[Node, Node] = {}
        self.position: dict[Node, int] = {}
        self.effects: dict[Node, Effects] = {}
        first_of: dict[str, Node] = {}
        for position, node in enumerate(graph.nodes):
            self.position[node] = position
            self._parent[node] = node
            effects = self.effects[node] = effects_of(node)
            for operand in effects.aliases:
                self._join(node, operand)
            if node.op == "placeholder":
                self._join(node, first_of.setdefault("", node))
            elif node.op == "get_attr":
                self._join(node, first_of.setdefault(str(node.target), node))
        self._writes: defaultdict[Node, list[int]] = defaultdict(list)
        for node, effects in self.effects.items():
            for written in effects.writes:
                self._writes[self._root(written)].append(self.position[node])
        self._escaping = self._find_escaping(graph)

    def writes_before(self, node: Node, position: int) -> int:
        """How many writes to the storage of `node` happen before `position`."""
        return bisect_left(self._writes.get(self._root(node), []), position)

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

    def written(self, node: Node) -> bool:
        """Whether the storage of `node` is written at all."""
        return bool(self._writes.get(self._root(node)))

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

    def _root(self, node: Node) -> Node:
        root = node
        while self._parent[root] is not root:
            root = self._parent[root]
        while self._parent[node] is not root:
            self._parent[node], node = root, self._parent[node]
        return root

    def _join(self, one: Node, other: Node) -> None:
        self._parent[self._root(one)] = self._root(other)

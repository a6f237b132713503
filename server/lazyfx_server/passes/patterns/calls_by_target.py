"""How often a graph calls each target, and where: the first filter of a search for patterns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

from torch.fx import Graph, Node
from torch.fx.node import Target

# What two nodes must have in common to match.
CallKey: TypeAlias = "tuple[str, Target]"


def call_key(node: Node) -> CallKey:
    """The key of a node: its kind, and what it calls."""
    return node.op, node.target


class CallsByTarget:
    """The calls of a graph by their targets, kept up to date while rewrites change the graph.

    One walk over the graph counts them for all patterns of a request. torch keeps the nodes
    themselves by target (`Graph.find_nodes`).
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._counts: Counter[CallKey] = Counter(map(call_key, graph.nodes))

    def count(self, key: CallKey) -> int:
        """How many nodes have a key."""
        return self._counts[key]

    def nodes(self, key: CallKey, *, in_order: bool = True) -> list[Node]:
        """The nodes with a key, in the order of the graph or in any order."""
        op, target = key
        found: list[Node] = self._graph.find_nodes(op=op, target=target, sort=in_order)
        return found

    def replace(self, removed: Iterable[CallKey], added: Iterable[CallKey]) -> None:
        """Keep up with a graph of which nodes were replaced, by their keys."""
        self._counts.subtract(removed)
        self._counts.update(added)

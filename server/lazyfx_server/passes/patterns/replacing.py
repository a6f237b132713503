"""Puts copies of a replacement in the places where its pattern matched.

Follows `torch.fx.subgraph_rewriter`, without its walks over the whole graph for each match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from lazyfx_server.passes.patterns.matching import Match


def replace_matches(graph: Graph, matches: Sequence[Match], replacement: Graph) -> list[Node]:
    """Replaces matches that do not overlap, in the given order.

    Args:
        graph: Where the matches are.
        matches: The matches of one pattern.
        replacement: Has the inputs of the pattern, and returns as many nodes as it.

    Returns:
        The nodes that were added.
    """
    inputs = [node for node in replacement.nodes if node.op == "placeholder"]
    calls = [node for node in replacement.nodes if node.op not in {"placeholder", "output"}]
    # Results of earlier matches that are inputs of later ones.
    replaced: dict[Node, Node] = {}
    added: list[Node] = []
    for match in matches:
        given = [_replaced(value, replaced) for value in match.inputs]
        copied: dict[Node, Any] = dict(zip(inputs, given, strict=True))
        with graph.inserting_before(_place(match)):
            made = graph.graph_copy(replacement, copied)
        results = [made] if isinstance(made, Node) else made
        assert isinstance(results, list | tuple)
        for old, new in zip(match.results, results, strict=True):
            assert isinstance(new, Node)
            old.replace_all_uses_with(new)
            replaced[old] = new
        for node in reversed(match.nodes.values()):
            graph.erase_node(node)
        added += [copied[node] for node in calls]
    return added


def _replaced(value: Any, replaced: Mapping[Node, Node]) -> Any:
    """What an input matches now: a node, a literal, or a container of them."""
    if isinstance(value, list | tuple | dict | slice):
        return torch.fx.node.map_arg(value, lambda node: replaced.get(node, node))
    return replaced.get(value, value) if isinstance(value, Node) else value


def _place(match: Match) -> Node:
    """The first node that uses a result, or the one after the last result."""
    users = [user for node in match.results for user in node.users]
    return min(users) if users else max(match.results).next

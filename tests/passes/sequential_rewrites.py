"""What `replace_pattern` must do, written with torch's own matcher and nothing remembered.

Each rewrite searches the whole graph with `torch.fx.subgraph_rewriter`. The pass searches in
another way, and must find the same matches, replace the same ones, and name new nodes the same.
torch breaks graphs in which an input of a pattern stands for a list of nodes that a match before
changed; the pass does not, and such graphs are not compared.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.utils import matcher_utils
from torch.fx.passes.utils.matcher_utils import InternalMatch, SubgraphMatcher
from torch.fx.subgraph_rewriter import replace_pattern_with_filters

from lazyfx_server.passes.analysis.called_operators import KnownValues
from lazyfx_server.passes.analysis.storage import StorageMap
from lazyfx_server.passes.analysis.walk import attribute_at, graph_modules, unused_name
from lazyfx_server.passes.base import Rewrite
from lazyfx_server.passes.patterns.guards import holds
from lazyfx_server.passes.patterns.literal_keys import literal_key
from lazyfx_server.passes.patterns.matching import INDEXING, same_containers


def rewrite_one_by_one(module: GraphModule, rewrites: list[Rewrite]) -> int:
    """Applies rewrites in order; returns how many matches were replaced."""
    total = 0
    for rewrite in rewrites:
        count = 0
        for part in graph_modules(module):
            try:
                count += _rewrite(part, rewrite, count)
            except KeyError:
                # torch's matcher, if one result is called nowhere and another one matches.
                part.recompile()
        total += count
    return total


def _rewrite(module: GraphModule, rewrite: Rewrite, earlier: int) -> int:
    attributes: dict[str, torch.Tensor] = {}
    template = _template(module, rewrite.replacement, attributes)
    with patch.object(matcher_utils, "SubgraphMatcher", _Matcher):
        found = replace_pattern_with_filters(
            module, rewrite.pattern, template, match_filters=[_Filter(module, rewrite, earlier)]
        )
    if found:
        for name, value in attributes.items():
            setattr(module, name, value)
    return len(found)


class _Matcher(SubgraphMatcher):
    """torch's, but literals that mean something else to torch's calls are different."""

    def _match_literals(self, pn: Any, gn: Any, match: InternalMatch) -> bool:
        known = match.nodes_map.get(pn, gn) if isinstance(pn, Node) else pn
        if not isinstance(gn, Node) and literal_key(known) != literal_key(gn):
            return False
        return super()._match_literals(pn, gn, match)

    def _match_nodes(self, pn: Node, gn: Node, match: InternalMatch, *rest: Any) -> bool:
        if pn.target in INDEXING and not same_containers(pn.args, gn.args):
            return False
        return super()._match_nodes(pn, gn, match, *rest)


class _Filter:
    """Whether a match may be replaced, by the positions of all nodes and writes of the graph."""

    def __init__(self, module: GraphModule, rewrite: Rewrite, earlier: int) -> None:
        self._rewrite = rewrite
        self._accepted = earlier
        self._known = KnownValues(module)
        self._storage = StorageMap(module.graph)
        self._returned: set[Node] = set()
        self._used: set[Node] = set()
        inputs = [node for node in rewrite.replacement.graph.nodes if node.op == "placeholder"]
        handed = rewrite.replacement.graph.output_node().all_input_nodes
        self._handed_through = [i for i, node in enumerate(inputs) if node in handed]

    def __call__(self, match: InternalMatch, *_graphs: Graph) -> bool:
        wanted = self._rewrite.at_most
        if wanted and self._accepted >= wanted:
            return False
        if not holds(self._rewrite.guards, match.placeholder_nodes, self._known):
            return False
        if not self._is_safe(match):
            return False
        self._accepted += 1
        self._returned.update(match.returning_nodes)
        torch.fx.node.map_arg(list(match.placeholder_nodes), self._used.add)
        return True

    def _is_safe(self, match: InternalMatch) -> bool:
        storage = self._storage
        positions = storage.position
        if any(not isinstance(match.placeholder_nodes[i], Node) for i in self._handed_through):
            return False
        inside = [n for p, n in match.nodes_map.items() if p.op not in {"placeholder", "output"}]
        places = frozenset(positions[node] for node in inside)
        users = [positions[user] for node in match.returning_nodes for user in node.users]
        target = min(users, default=max(places) + 1)
        operands: list[Node] = []
        torch.fx.node.map_arg(list(match.placeholder_nodes), operands.append)
        if not set(operands).isdisjoint(inside):
            return False
        if len(match.returning_nodes) > 1 and any(
            positions[node] >= target or node in self._returned for node in operands
        ):
            return False
        if len(match.returning_nodes) > 1 and not self._used.isdisjoint(match.returning_nodes):
            return False
        first, last = min(places), max(target, max(places) + 1)
        switches = [place for node, place in positions.items() if storage.effects[node].state]
        if any(first <= switch < last and switch not in places for switch in switches):
            return False
        if any(storage.written_between(node, first, last, places) for node in operands):
            return False
        if any(storage.written_between(node, positions[node], last, places) for node in inside):
            return False
        effects = [storage.effects[node] for node in inside]
        between = [n for n, place in positions.items() if first <= place < last]
        outside = [n for n in between if positions[n] not in places and n.op.startswith("call_")]
        if any(e.random for e in effects) and any(storage.effects[n].random for n in outside):
            return False
        writers = [node for node in inside if storage.effects[node].writes]
        return not any(storage.used_between(w, first, last, set(inside)) for w in writers)


def _template(
    module: GraphModule, replacement: GraphModule, attributes: dict[str, torch.Tensor]
) -> Graph:
    template = Graph()
    made: dict[Node, Node] = {}
    paths: dict[str, str] = {}
    for node in replacement.graph.nodes:
        target: Any = node.target
        if node.op == "get_attr":
            path = str(target)
            if path not in paths:
                name = unused_name(module, "_replaced_")
                number = int(name.rpartition("_")[2])
                while hasattr(module, name) or name in attributes:
                    number += 1
                    name = f"_replaced_{number}"
                paths[path] = name
                value = attribute_at(replacement, path)
                assert isinstance(value, torch.Tensor)
                attributes[name] = value.detach()
            target = paths[path]
        made[node] = template.create_node(
            node.op,
            target,
            torch.fx.node.map_arg(node.args, made.__getitem__),
            torch.fx.node.map_arg(node.kwargs, made.__getitem__),
        )
    return template

"""Whether a match may be replaced: its nodes are moved together, across what lies between them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import takewhile
from typing import Any

import torch
from torch.fx import GraphModule, Node

from lazyfx_server.passes.analysis.effects import effects_of
from lazyfx_server.passes.analysis.storage import StorageMap
from lazyfx_server.passes.patterns.matching import Match


class MatchSafety:
    """Checks matches in one graph. All matches of a pattern are checked before one is replaced.

    Few graphs write to tensors, and fewer between the nodes of a match. So which values share
    storage is looked at only if something between the nodes may write.
    """

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        self._hazards: _Hazards | None = None
        self._storage: StorageMap | None = None

    def is_safe(self, match: Match, returned: AbstractSet[Node]) -> bool:
        """Whether gathering the nodes of a match keeps what the graph computes.

        Args:
            match: The match.
            returned: The results of the matches that will be replaced before it.
        """
        inside = frozenset(match.nodes.values())
        last = max(inside)
        # Where the replacement is inserted: before the first user of a result.
        user = min((user for node in match.results for user in node.users), default=None)
        operands = _nodes_in(match.inputs)
        if not inside.isdisjoint(operands):
            return False  # in a list that an input matches
        if len(match.results) > 1 and any(
            node in returned or (node > last if user is None else node >= user) for node in operands
        ):
            return False
        way = _Way(min(inside), last, user, inside)
        if self._hazards is None:
            self._hazards = _Hazards(self._module.graph.nodes)
        if way.crosses(self._hazards.switches):
            return False
        return not (way.crosses(self._hazards.writers) and self._is_written(operands, way))

    def was_replaced(self, removed: AbstractSet[Node], added: Sequence[Node]) -> None:
        """Keep up with a graph of which nodes were replaced."""
        self._storage = None
        if self._hazards is not None:
            self._hazards.update(removed, added)

    def forget(self) -> None:
        """Forget the effects of calls, after a graph that the module calls was changed."""
        self._storage = self._hazards = None

    def _is_written(self, operands: Iterable[Node], way: _Way) -> bool:
        storage = self._storage = self._storage or StorageMap(self._module.graph)
        position = storage.position
        end = position[way.last] + 1
        if way.user is not None:
            end = max(end, position[way.user])
        ignored = frozenset(position[node] for node in way.inside)
        start = position[way.first]
        return any(storage.written_between(node, start, end, ignored) for node in operands)


class _Way:
    """The part of a graph across which the nodes of a match are moved."""

    def __init__(
        self, first: Node, last: Node, user: Node | None, inside: AbstractSet[Node]
    ) -> None:
        self.first = first
        self.last = last
        self.user = user
        self.inside = inside

    def crosses(self, hazards: Sequence[Node]) -> bool:
        """Whether one of these nodes, given in graph order, is on the way but not of the match."""
        found = (hazards[i] for i in range(bisect_left(hazards, self.first), len(hazards)))
        return any(node not in self.inside for node in takewhile(self._holds, found))

    def _holds(self, node: Node) -> bool:
        return node <= self.last or (self.user is not None and node < self.user)


class _Hazards:
    """The nodes of a graph that others cannot be moved across, in graph order.

    Attributes:
        switches: Those that change the state in which later nodes run.
        writers: Those that may write to tensors.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.switches: list[Node] = []
        self.writers: list[Node] = []
        self._add(nodes)

    def update(self, removed: AbstractSet[Node], added: Iterable[Node]) -> None:
        """Leave out nodes that were removed and note those that were added."""
        self.switches = [node for node in self.switches if node not in removed]
        self.writers = [node for node in self.writers if node not in removed]
        self._add(added)
        self.switches.sort()
        self.writers.sort()

    def _add(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            effects = effects_of(node)
            if effects.state:
                self.switches.append(node)
            # A module may write to its buffers without an effect on its operands.
            if effects.writes or (node.op == "call_module" and not effects.pure):
                self.writers.append(node)


def _nodes_in(values: Iterable[Any]) -> list[Node]:
    found: list[Node] = []
    torch.fx.node.map_arg(list(values), found.append)
    return found

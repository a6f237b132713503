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

    def is_safe(
        self, match: Match, returned: AbstractSet[Node], used: AbstractSet[Node] = frozenset()
    ) -> bool:
        """Whether gathering the nodes of a match keeps what the graph computes.

        Args:
            match: The match.
            returned: The results of the matches that will be replaced before it.
            used: The nodes that the inputs of those matches stand for.
        """
        inside = frozenset(match.nodes.values())
        last = max(inside)
        # Where the replacement is inserted: before the first user of a result.
        user = min((user for node in match.results for user in node.users), default=None)
        operands = nodes_in(match.inputs)
        if not inside.isdisjoint(operands):
            return False  # in a list that an input matches
        if len(match.results) > 1:
            if any(
                node in returned or (node > last if user is None else node >= user)
                for node in operands
            ):
                return False
            # A match that is replaced before it may be moved up, with its use of a result.
            if not used.isdisjoint(match.results):
                return False
        way = _Way(min(inside), last, user, inside)
        if self._hazards is None:
            self._hazards = _Hazards(self._module.graph.nodes)
        return self._may_move(operands, way, self._hazards)

    def _may_move(self, operands: Sequence[Node], way: _Way, hazards: _Hazards) -> bool:
        if way.crosses(hazards.switches):
            return False
        if way.crosses(hazards.draws) and way.moves(hazards.draws):
            return False  # each would draw the other's numbers
        if way.crosses(hazards.writers) and self._is_written(operands, way):
            return False
        return not any(self._is_used(writer, way) for writer in way.moves(hazards.writers))

    def was_replaced(self, removed: AbstractSet[Node], added: Sequence[Node]) -> None:
        """Keep up with a graph of which nodes were replaced."""
        self._storage = None
        if self._hazards is not None:
            self._hazards.update(removed, added)

    def forget(self) -> None:
        """Forget the effects of calls, after a graph that the module calls was changed."""
        self._storage = self._hazards = None

    def _is_written(self, operands: Iterable[Node], way: _Way) -> bool:
        """Whether something outside writes an operand on the way, or a value that was computed."""
        storage = self._storage = self._storage or StorageMap(self._module.graph)
        position = storage.position
        end = self._end(way)
        ignored = frozenset(position[node] for node in way.inside)
        begins = [(node, position[way.first]) for node in operands]
        begins += [(node, position[node]) for node in way.inside]
        return any(storage.written_between(node, start, end, ignored) for node, start in begins)

    def _is_used(self, writer: Node, way: _Way) -> bool:
        """Whether something outside, on the way, uses what a node of the match writes."""
        storage = self._storage = self._storage or StorageMap(self._module.graph)
        return storage.used_between(writer, storage.position[way.first], self._end(way), way.inside)

    def _end(self, way: _Way) -> int:
        """The first position behind the way."""
        assert self._storage is not None
        position = self._storage.position
        end = position[way.last] + 1
        return end if way.user is None else max(end, position[way.user])


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

    def moves(self, hazards: Sequence[Node]) -> list[Node]:
        """Those of these nodes, given in graph order, that are of the match."""
        found = (hazards[i] for i in range(bisect_left(hazards, self.first), len(hazards)))
        return [node for node in takewhile(self._holds, found) if node in self.inside]

    def _holds(self, node: Node) -> bool:
        return node <= self.last or (self.user is not None and node < self.user)


class _Hazards:
    """The nodes of a graph that others cannot be moved across, in graph order.

    Attributes:
        switches: Those that change the state in which later nodes run.
        writers: Those that may write to tensors.
        draws: Those that draw random numbers.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.switches: list[Node] = []
        self.writers: list[Node] = []
        self.draws: list[Node] = []
        self._add(nodes)

    def update(self, removed: AbstractSet[Node], added: Iterable[Node]) -> None:
        """Leave out nodes that were removed and note those that were added."""
        self.switches = [node for node in self.switches if node not in removed]
        self.writers = [node for node in self.writers if node not in removed]
        self.draws = [node for node in self.draws if node not in removed]
        self._add(added)
        self.switches.sort()
        self.writers.sort()
        self.draws.sort()

    def _add(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            effects = effects_of(node)
            if effects.state:
                self.switches.append(node)
            if effects.random:
                self.draws.append(node)
            # A module may write to its buffers without an effect on its operands.
            if effects.writes or (node.op == "call_module" and not effects.pure):
                self.writers.append(node)


def nodes_in(values: Iterable[Any]) -> list[Node]:
    """The nodes among values, or in lists of them."""
    found: list[Node] = []
    torch.fx.node.map_arg(list(values), found.append)
    return found

"""Tracks the origins of a graph's tensors and modules, even if passes move them to other graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch.fx import GraphModule

from lazyfx.shared.wire import names
from lazyfx.shared.wire.values.tensors import stand_in_of
from lazyfx.v1 import graph_pb2 as pb

Place = tuple[int, int]


class Origins:
    """Positions of a source graph's attributes, by value.

    Objects are compared by identity, except that copies of a stand-in for an absent tensor count as
    equal. They are kept alive, so that their ids are not reused.

    Args:
        module: A graph decoded with canonical names, before any changes.
        source: The body from which it was decoded.
    """

    def __init__(self, module: GraphModule, source: pb.GraphBody) -> None:
        self._kept: list[object] = []
        self._places: dict[int, Place] = {}
        graphs: dict[int, object] = {0: module}
        for number, columns in enumerate(source.graphs):
            owner = graphs.get(number)
            for i, path in enumerate(names.canonical_paths(columns.attributes)):
                value = _at(owner, path)
                if isinstance(value, GraphModule):
                    graphs.setdefault(columns.attributes[i].graph, value)
                for known in _identities(value):
                    self._kept.append(known)
                    self._places.setdefault(id(known), (number, i))

    def of(self, value: object) -> Place | None:
        """Graph and attribute index of a value, or None for one that a pass created."""
        return next(
            (self._places[id(k)] for k in _identities(value) if id(k) in self._places), None
        )

    def common_graph(self, values: Iterable[object]) -> int | None:
        """The graph from which most of some values came."""
        found = Counter(place[0] for value in values if (place := self.of(value)) is not None)
        return found.most_common(1)[0][0] if found else None


def tensor_origins(
    origins: Origins | None, graph: int, values: Iterable[object], known: Mapping[int, int]
) -> list[int]:
    """For each attribute of a graph: 1 + its index in graph `graph` of the source, or 0.

    Args:
        origins: Finds values that were moved.
        graph: The source graph of the indices.
        values: The attributes.
        known: Indices that are already known, by position among the attributes.
    """
    result = []
    for i, value in enumerate(values):
        place = known.get(i)
        if place is None and origins is not None:
            found = origins.of(value)
            place = found[1] if found is not None and found[0] == graph else None
        result.append(0 if place is None else 1 + place)
    return result


def _identities(value: object) -> list[object]:
    if isinstance(value, torch.Tensor):
        stand_in = stand_in_of(value)
        return [value] if stand_in is None else [value, stand_in]
    return [value] if isinstance(value, torch.nn.Module) else []


def _at(owner: object, path: str) -> object:
    for part in path.split("."):
        owner = getattr(owner, part, None)
    return owner

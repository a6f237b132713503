"""Bounds on the parts of one graph, in addition to its nodes and bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lazyfx.errors import DecodeError
from lazyfx.shared.source.writable import MAX_SOURCE_BYTES
from lazyfx.shared.wire.canonical.places import refused_row
from lazyfx.shared.wire.format import MAX_DEPTH
from lazyfx.v1 import graph_pb2
from lazyfx_server.security.call_verdicts import CallVerdict
from lazyfx_server.v1 import worker_pb2 as worker


@dataclass(frozen=True)
class GraphBounds:
    """Bounds of one graph; see the settings of the same names."""

    max_edges: int = 2_000_000
    max_calls: int = 200_000
    max_arguments: int = 100_000
    max_string_bytes: int = 2**20
    max_rank: int = 64
    max_elements: int = 2**48
    max_outputs: int = 10_000
    max_source_bytes: int = MAX_SOURCE_BYTES

    @classmethod
    def of(cls, message: worker.GraphLimits) -> GraphBounds:
        """The bounds in a job's message; missing ones have their defaults."""
        return cls(**{field.name: value for field, value in message.ListFields()})

    def message(self) -> worker.GraphLimits:
        """The bounds to send with a job."""
        return worker.GraphLimits(
            **{name: getattr(self, name) for name in self.__dataclass_fields__}
        )


DEFAULT_BOUNDS = GraphBounds()


def check_bounds(
    body: graph_pb2.GraphBody, bounds: GraphBounds, verdicts: Sequence[CallVerdict]
) -> None:
    """Check that no part of a graph exceeds its bound.

    Works on the tables, once per distinct row.

    Args:
        body: A body in canonical form.
        bounds: The bounds.
        verdicts: The verdicts on its calls.

    Raises:
        DecodeError: One does; names the field and the setting.
    """
    _check_depth(body)
    edges = sum(len(graph.operands) for graph in body.graphs)
    _within(edges, "max_edges", bounds, "edges", "graphs")
    _within(len(body.calls), "max_calls", bounds, "distinct calls", "calls")
    counts = (verdict.arguments for verdict in verdicts)
    shapes = [row.shape or row.symbolic_shape for row in body.tensors]
    elements = (math.prod(row.shape) for row in body.tensors)
    for found, name, what, table in (
        (map(len, body.strings), "max_string_bytes", "characters", "strings"),
        (counts, "max_arguments", "arguments", "calls"),
        (map(len, shapes), "max_rank", "dimensions", "tensors"),
        (elements, "max_elements", "elements", "tensors"),
        (map(_outputs, body.values), "max_outputs", "outputs", "values"),
    ):
        numbers = list(found)
        most, allowed = max(numbers, default=0), getattr(bounds, name)
        if most > allowed:
            raise refused_row(_over(most, what, allowed, name), body, table, numbers.index(most))


def _check_depth(body: graph_pb2.GraphBody) -> None:
    """Check the nesting depth of graphs; each refers only to later ones."""
    depths = [1] * len(body.graphs)
    for i, graph in enumerate(body.graphs):
        if depths[i] > MAX_DEPTH:
            raise DecodeError(
                f"graphs are nested more than {MAX_DEPTH} deep (max_nesting)",
                field=f"graphs[{i}]",
            )
        for attribute in graph.attributes:
            if attribute.WhichOneof("kind") == "graph":
                depths[attribute.graph] = max(depths[attribute.graph], depths[i] + 1)


def _outputs(value: graph_pb2.ValueDescription) -> int:
    return len(value.list.items) or len(value.tuple.items)


def _within(found: int, name: str, bounds: GraphBounds, what: str, field: str) -> None:
    most = getattr(bounds, name)
    if found > most:
        raise DecodeError(_over(found, what, most, name), field=field)


def _over(found: int, what: str, most: int, setting: str) -> str:
    return f"{found} {what}; at most {most} are allowed (setting {setting})"

"""Checks the bounds on the parts of one graph."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.canonical.places import refused_row
from lazyfx.shared.wire.format import MAX_DEPTH
from lazyfx.v1 import graph_pb2
from lazyfx_server.security.call_verdicts import CallVerdict
from lazyfx_server.settings.limits import GraphLimits
from lazyfx_server.settings.part import Bound


def check_bounds(
    body: graph_pb2.GraphBody, limits: GraphLimits, verdicts: Sequence[CallVerdict]
) -> None:
    """Check that no part of a graph exceeds its bound.

    Works on the tables, once per distinct row.

    Args:
        body: A body in canonical form.
        limits: The bounds.
        verdicts: The verdicts on its calls.

    Raises:
        DecodeError: One does; names the field and the setting.
    """
    _check_depth(body)
    edges = sum(len(graph.operands) for graph in body.graphs)
    _within(edges, limits.bound("max_edges"), "edges", "graphs")
    _within(len(body.calls), limits.bound("max_calls"), "distinct calls", "calls")
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
        most, bound = max(numbers, default=0), limits.bound(name)
        if most > bound.most:
            raise refused_row(f"{most} {what}; {bound.allowed}", body, table, numbers.index(most))


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


def _within(found: int, bound: Bound, what: str, field: str) -> None:
    if found > bound.most:
        raise DecodeError(f"{found} {what}; {bound.allowed}", field=field)

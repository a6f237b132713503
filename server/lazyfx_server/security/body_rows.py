"""Bounds the rows of a graph body's tables, counted in its bytes before it is parsed."""

from __future__ import annotations

from lazyfx.errors import DecodeError
from lazyfx_server.security.graph_bounds import GraphBounds
from lazyfx_server.security.scanning import (
    Bound,
    FieldBounds,
    MessageBounds,
    OverBoundError,
    scan,
)

# Tables in which even very large graphs have few rows.
_MAX_FEW = 65_536
_ANY = Bound(2**31)


def check_rows(body: bytes, max_nodes: int, bounds: GraphBounds) -> None:
    """Refuse a body whose tables have more rows than a graph within the bounds could use.

    Args:
        body: The untrusted bytes.
        max_nodes: Maximum number of nodes, nested graphs included.
        bounds: Bounds on its parts.

    Raises:
        DecodeError: A table is too long, or the bytes are malformed.
    """
    try:
        scan(body, _body(max_nodes, bounds))
    except OverBoundError as error:
        raise DecodeError(error.reason, field=error.field) from None


def _body(max_nodes: int, bounds: GraphBounds) -> MessageBounds:
    nodes = Bound(max_nodes, "max_nodes")
    # A node has one value, which may be a sequence of values; a size is an expression with parts.
    described = Bound(4 * max_nodes + _MAX_FEW, "max_nodes")
    calls = Bound(bounds.max_calls, "max_calls")
    few = Bound(_MAX_FEW)
    text = Bound(4 * bounds.max_string_bytes, "max_string_bytes")
    texts = Bound(bounds.max_calls + _MAX_FEW, "max_calls")
    column, edges = Bound(5 * max_nodes, "max_nodes"), Bound(5 * bounds.max_edges, "max_edges")
    # Whether there is one row per node is checked when columns are read.
    graph = MessageBounds(
        {
            1: FieldBounds("calls", column, nodes),
            2: FieldBounds("operands", edges, Bound(bounds.max_edges, "max_edges")),
            3: FieldBounds("values", column, nodes),
            4: FieldBounds("attributes", _ANY, described, total=described),
        }
    )
    return MessageBounds(
        {
            1: FieldBounds("strings", text, texts),
            2: FieldBounds("targets", Bound(4096), few),
            3: FieldBounds("devices", Bound(64), few),
            4: FieldBounds("symbols", Bound(256), few),
            5: FieldBounds("expressions", _ANY, described),
            6: FieldBounds("tensors", _ANY, described),
            7: FieldBounds("values", _ANY, described),
            8: FieldBounds("calls", _ANY, calls),
            9: FieldBounds("graphs", _ANY, nodes, graph),
            10: FieldBounds("process_groups"),
        }
    )

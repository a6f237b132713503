"""Bounds the rows of a graph body's tables, counted in its bytes before it is parsed."""

from __future__ import annotations

from lazyfx.errors import DecodeError
from lazyfx_server.security.scanning import (
    FieldBounds,
    MessageBounds,
    OverBoundError,
    scan,
)
from lazyfx_server.settings.limits import GraphLimits
from lazyfx_server.settings.part import Bound

# Tables in which even very large graphs have few rows.
_MAX_FEW = 65_536
_ANY = Bound(2**31)


def check_rows(body: bytes, limits: GraphLimits) -> None:
    """Refuse a body whose tables have more rows than a graph within the bounds could use.

    Args:
        body: The untrusted bytes.
        limits: Bounds on the size of a graph.

    Raises:
        DecodeError: A table is too long, or the bytes are malformed.
    """
    try:
        scan(body, _body(limits))
    except OverBoundError as error:
        raise DecodeError(error.reason, field=error.field) from None


def _body(limits: GraphLimits) -> MessageBounds:
    nodes, calls = limits.bound("max_nodes"), limits.bound("max_calls")
    # A node has one value, which may be a sequence of values; a size is an expression with parts.
    described = Bound(4 * nodes.most + _MAX_FEW, "max_nodes")
    few = Bound(_MAX_FEW)
    text = Bound(4 * limits.max_string_bytes, "max_string_bytes")
    texts = Bound(calls.most + _MAX_FEW, "max_calls")
    column, edges = Bound(5 * nodes.most, "max_nodes"), limits.bound("max_edges")
    # Whether there is one row per node is checked when columns are read.
    graph = MessageBounds(
        {
            1: FieldBounds("calls", column, nodes),
            2: FieldBounds("operands", Bound(5 * edges.most, "max_edges"), edges),
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

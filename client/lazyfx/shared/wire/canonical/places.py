"""Finds the node that first uses a table row, so that an error can name it."""

from __future__ import annotations

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.canonical.body import check_graphs
from lazyfx.shared.wire.canonical.row_rules import RowChecker
from lazyfx.v1 import graph_pb2 as pb


def first_use(body: pb.GraphBody, table: str, row: int) -> tuple[int, int] | None:
    """The first node that uses a row of a table, directly or through other rows.

    Takes as long as checking the body.

    Args:
        body: A body in canonical form, in which nothing is unused.
        table: Field of the body: "strings", "targets", "devices", "tensors", "values" or "calls".
        row: Index into it.

    Returns:
        The index of a graph and of a node in it; None if no node uses the row.
    """
    try:
        check_graphs(body, _Finder(body, table, row))
    except DecodeError as stopped:
        reached = isinstance(stopped, _ReachedError)
        if reached and stopped.graph is not None and stopped.node is not None:
            return stopped.graph, stopped.node
    return None


def refused_row(reason: str, body: pb.GraphBody, table: str, row: int) -> DecodeError:
    """An error about a row of a table, which names the first node that uses it."""
    graph, node = first_use(body, table, row) or (None, None)
    return DecodeError(reason, field=f"{table}[{row}]", node=node, graph=graph)


def refused_target(
    reason: str, body: pb.GraphBody, target: int, kind: type[DecodeError] = DecodeError
) -> DecodeError:
    """An error about a target, which names the first node that uses it."""
    use = first_use(body, "targets", target)
    if use is None:
        return kind(reason, field=f"targets[{target}]")
    graph, node = use
    return kind(reason, field=f"graphs[{graph}].calls[{node}]", node=node, graph=graph)


def refused_call(reason: str, body: pb.GraphBody, call: int) -> DecodeError:
    """An error about a row of `calls`, which names the first node with that call."""
    graph, node = next(
        (g, list(c.calls).index(call)) for g, c in enumerate(body.graphs) if call in c.calls
    )
    return DecodeError(reason, field=f"graphs[{graph}].calls[{node}]", node=node, graph=graph)


class _ReachedError(DecodeError):
    """The row was reached; the walk over the nodes adds the position."""


class _Finder(RowChecker):
    """Walks over rows in first-use order until it reaches one of them."""

    def __init__(self, body: pb.GraphBody, table: str, row: int) -> None:
        super().__init__(body, body.SerializeToString(deterministic=True))
        self._wanted = table, row

    def _first(self, table: str, index: int) -> bool:
        first = super()._first(table, index)
        if first and (table, index) == self._wanted:
            raise _ReachedError("reached")
        return first

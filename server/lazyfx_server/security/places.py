"""Where in a graph something of its tables is used, so that an error can name the node."""

from __future__ import annotations

from lazyfx.v1 import graph_pb2


def first_call(body: graph_pb2.GraphBody, call: int) -> tuple[str, int]:
    """The first node that makes a distinct call.

    Args:
        body: A body in canonical form, in which nothing is unused.
        call: Index into its calls.

    Returns:
        The field that holds it, and the node's index in its graph.
    """
    graph, node = next(
        (g, list(c.calls).index(call)) for g, c in enumerate(body.graphs) if call in c.calls
    )
    return f"graphs[{graph}].calls[{node}]", node


def first_use(body: graph_pb2.GraphBody, target: int) -> tuple[str, int | None]:
    """The first node that calls a target, or the target's own row when it is an argument."""
    for i, call in enumerate(body.calls):
        if call.target == target + 1:
            return first_call(body, i)
    return f"targets[{target}]", None

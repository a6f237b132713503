"""CheckedGraph: the proof that some bytes are a graph that may be run, printed and stored."""

from __future__ import annotations

from dataclasses import dataclass

from lazyfx import wire
from lazyfx.errors import DecodeError
from lazyfx.v1 import graph_pb2
from torch.fx import GraphModule


@dataclass(frozen=True)
class CheckedGraph:
    """A graph in canonical form whose every part is allowed. Made by `check` only.

    Attributes:
        body: The message.
        module: The graph, with tensors on the meta device.
    """

    body: graph_pb2.GraphBody
    module: GraphModule


def check(body: bytes, *, max_nodes: int) -> CheckedGraph:
    """Check a graph body.

    The bytes are in canonical form, so that equal digests mean equal graphs; references
    go strictly backwards, the output is the last node, and targets, modules and literals
    are entries of closed tables, looked up and never walked.

    Raises:
        DecodeError: It is not such a graph, or has more nodes than it may; names the field
            and the node.
    """
    message = wire.check_canonical(body)
    nodes = sum(len(graph.calls) for graph in message.graphs)
    if nodes > max_nodes:
        raise DecodeError(
            f"the graph has {nodes} nodes, {max_nodes} are taken (setting max_nodes)",
            field="graphs",
        )
    module = wire.decode(message)
    return CheckedGraph(message, module)

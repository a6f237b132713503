"""CheckedGraph: the proof that some bytes are a graph that may be run, printed and stored."""

from __future__ import annotations

from dataclasses import dataclass

from lazyfx import wire
from lazyfx.errors import DecodeError
from lazyfx.v1 import graph_pb2
from torch.fx import GraphModule

from lazyfx_server.security.source import check_size, check_writable


@dataclass(frozen=True)
class CheckedGraph:
    """A graph in canonical form whose every part is allowed. Made by `check` only.

    Attributes:
        body: The message.
        module: The graph, with tensors on the meta device.
    """

    body: graph_pb2.GraphBody
    module: GraphModule


def check(
    body: bytes,
    *,
    max_nodes: int,
    names: graph_pb2.Presentation | None = None,
    module_class: wire.ModuleClass = GraphModule,
) -> CheckedGraph:
    """Check a graph body.

    The bytes are in canonical form, so that equal digests mean equal graphs; references
    go strictly backwards, the output is the last node, and targets, modules and literals
    are entries of closed tables, looked up and never walked; torch.fx can write the graph
    as Python source, and at a bearable length.

    Args:
        body: What a stranger sent.
        max_nodes: Most nodes taken, nested graphs included.
        names: Names for the module; canonical ones when left out.
        module_class: Makes the modules; a lazy class generates no code for them.

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
    check_writable(message)
    check_size(message, None)
    module = wire.decode(message, names, module_class=module_class)
    return CheckedGraph(message, module)

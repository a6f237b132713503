"""CheckedGraph: the proof that some bytes are a graph that may be run, printed and stored."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import GraphModule

from lazyfx import wire
from lazyfx.errors import DecodeError
from lazyfx.v1 import graph_pb2
from lazyfx.wire.tensors import contiguous_strides, storage_extent
from lazyfx_server.security.allowed import check_reviewed
from lazyfx_server.security.bounds import DEFAULT_BOUNDS, GraphBounds, check_bounds
from lazyfx_server.security.names import check_names
from lazyfx_server.security.schemas import check_schemas
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
    bounds: GraphBounds = DEFAULT_BOUNDS,
    names: graph_pb2.Presentation | None = None,
    presentation: graph_pb2.Presentation | None = None,
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
        bounds: How large its parts may be.
        names: Names for the module; canonical ones when left out.
        presentation: Names that came with the graph and will be used later.
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
    check_bounds(message, bounds)
    _check_tensors(message)
    named = [given for given in (names, presentation) if given is not None and given.ByteSize()]
    # Names only make a source longer.
    for given in named or (None,):
        check_size(message, given)
    for given in named:
        check_names(message, given)
    check_writable(message)
    check_reviewed(message)
    check_schemas(message)
    module = wire.decode(message, names, module_class=module_class)
    return CheckedGraph(message, module)


def _check_tensors(body: graph_pb2.GraphBody) -> None:
    """Check that torch could count the elements and the memory of each described tensor."""
    for i, row in enumerate(body.tensors):
        try:
            storage_extent(row.shape, row.stride or contiguous_strides(row.shape), 0)
        except DecodeError as error:
            raise DecodeError(
                "its extent does not fit into 64 bits", field=f"tensors[{i}]"
            ) from error

"""CheckedGraph: the proof that some bytes are a graph that may be run, printed and stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import GraphModule

from lazyfx.errors import DecodeError
from lazyfx.shared import wire
from lazyfx.shared.source.writable import check_placeholders, check_size
from lazyfx.shared.wire.canonical.places import refused_call, refused_row
from lazyfx.shared.wire.values.tensors import contiguous_strides, storage_extent
from lazyfx.v1 import graph_pb2
from lazyfx_server.security.allowed import check_reviewed
from lazyfx_server.security.allowed_names import check_names
from lazyfx_server.security.body_rows import check_rows
from lazyfx_server.security.call_verdicts import CallVerdict, call_verdicts
from lazyfx_server.security.graph_bounds import check_bounds
from lazyfx_server.settings.limits import DEFAULT_GRAPH_LIMITS, GraphLimits

# Elements of a storage: their bytes fit into 64 bits, whatever the dtype.
_MAX_EXTENT = 2**58


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
    limits: GraphLimits = DEFAULT_GRAPH_LIMITS,
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
        limits: How large it may be.
        names: Names for the module; canonical ones when left out.
        presentation: Names that came with the graph and will be used later.
        module_class: Makes the modules; a lazy class generates no code for them.

    Raises:
        DecodeError: It is not such a graph, or is larger than it may be; names the field
            and the node.
    """
    check_rows(body, limits)
    read = wire.read_canonical(body)
    named = [given for given in (names, presentation) if given is not None and given.ByteSize()]
    check_message(read.message, limits=limits, named=named)
    module = wire.decode(read, names, module_class=module_class)
    return CheckedGraph(read.message, module)


def check_message(
    body: graph_pb2.GraphBody,
    *,
    limits: GraphLimits = DEFAULT_GRAPH_LIMITS,
    named: Sequence[graph_pb2.Presentation] = (),
) -> None:
    """Check a body in canonical form: all but what building the module finds.

    Args:
        body: What `wire.check_canonical` made.
        limits: How large it may be.
        named: Names that it will have.

    Raises:
        DecodeError: It may not be used; names the field and the node.
    """
    nodes = sum(len(graph.calls) for graph in body.graphs)
    most = limits.bound("max_nodes")
    if nodes > most.most:
        raise DecodeError(f"the graph has {nodes} nodes; {most.allowed}", field="graphs")
    verdicts = call_verdicts(body)
    check_bounds(body, limits, verdicts)
    _check_symbols(body)
    _check_tensors(body)
    literals = [verdict.characters for verdict in verdicts]
    # Names only make a source longer.
    for given in named or (None,):
        check_size(body, literals, given, limits.max_source_bytes)
    for given in named:
        check_names(body, given)
    check_reviewed(body)
    _check_calls(body, verdicts)
    check_placeholders(body)


def _check_calls(body: graph_pb2.GraphBody, verdicts: Sequence[CallVerdict]) -> None:
    """Check that each call can be written, and fits what it calls."""
    for i, verdict in enumerate(verdicts):
        if verdict.reason is not None:
            raise refused_call(verdict.reason, body, i)


def _check_symbols(body: graph_pb2.GraphBody) -> None:
    """Check that each symbol can have its example value, and a size one."""
    for i, row in enumerate(body.symbols):
        least = row.minimum if row.HasField("minimum") else -(2**63)
        most = row.maximum if row.HasField("maximum") else 2**63
        if least > most:
            raise DecodeError("its bounds exclude every value", field=f"symbols[{i}]")
        if row.HasField("hint") and not (
            least <= row.hint <= most and abs(row.hint) <= _MAX_EXTENT
        ):
            raise DecodeError("its example value is out of bounds", field=f"symbols[{i}]")


def _check_tensors(body: graph_pb2.GraphBody) -> None:
    """Check that torch could count the elements and the bytes of each described tensor."""
    for i, row in enumerate(body.tensors):
        shape, stride, offset = row.shape, row.stride, row.storage_offset
        # What is contiguous and small needs no closer look.
        if not stride and not offset and 0 < math.prod(shape) < _MAX_EXTENT:
            continue
        # An empty tensor has strides, too.
        sizes = [max(size, 1) for size in shape]
        try:
            extent = storage_extent(sizes, stride or contiguous_strides(sizes), offset)
        except DecodeError:
            extent = _MAX_EXTENT + 1
        if extent > _MAX_EXTENT:
            raise refused_row("its extent does not fit into 64 bits", body, "tensors", i)

"""CheckedGraph: a graph that passed all checks and is safe to run, print and store."""

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

# Maximum elements of a storage: its size in bytes fits into 64 bits for every dtype.
_MAX_EXTENT = 2**58


@dataclass(frozen=True)
class CheckedGraph:
    """A graph in canonical form, every part of which is allowed. Created only by `check`.

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

    The bytes are in canonical form, so that equal digests mean equal graphs. References go strictly
    backwards, and the output is the last node. Targets, modules and literals are looked up in
    closed tables; no attribute path is followed. torch.fx can write the graph as Python source of
    acceptable length.

    Args:
        body: The untrusted bytes.
        limits: Bounds on the size of the graph.
        names: Names for the module; canonical ones by default.
        presentation: Names that came with the graph and will be used later.
        module_class: The class of the modules; a lazy class generates no code.

    Raises:
        DecodeError: It is not such a graph, or exceeds a bound; names the field and the node.
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
    """Check a body in canonical form; everything except what building the module checks.

    Args:
        body: The result of `wire.check_canonical`.
        limits: Bounds on the size of the graph.
        named: The names that it will have.

    Raises:
        DecodeError: It is not allowed; names the field and the node.
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
    # Names can only make the source longer.
    for given in named or (None,):
        check_size(body, literals, given, limits.max_source_bytes)
    for given in named:
        check_names(body, given)
    check_reviewed(body)
    _check_calls(body, verdicts)
    check_placeholders(body)


def _check_calls(body: graph_pb2.GraphBody, verdicts: Sequence[CallVerdict]) -> None:
    """Check that each call can be written as source, and matches its target's signature."""
    for i, verdict in enumerate(verdicts):
        if verdict.reason is not None:
            raise refused_call(verdict.reason, body, i)


def _check_symbols(body: graph_pb2.GraphBody) -> None:
    """Check that each symbol's bounds admit its example value, and some value if it is a size."""
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
    """Check that the elements and bytes of each described tensor do not overflow."""
    for i, row in enumerate(body.tensors):
        shape, stride, offset = row.shape, row.stride, row.storage_offset
        # Small contiguous tensors need no further checks.
        if not stride and not offset and 0 < math.prod(shape) < _MAX_EXTENT:
            continue
        # Even an empty tensor has strides.
        sizes = [max(size, 1) for size in shape]
        try:
            extent = storage_extent(sizes, stride or contiguous_strides(sizes), offset)
        except DecodeError:
            extent = _MAX_EXTENT + 1
        if extent > _MAX_EXTENT:
            raise refused_row("its extent does not fit into 64 bits", body, "tensors", i)

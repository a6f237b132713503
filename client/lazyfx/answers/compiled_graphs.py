"""Checks a compiled graph from a server before a module is built from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError as ProtobufError

from lazyfx.answers.known_passes import are_all_from_lazyfx
from lazyfx.errors import DecodeError, ProtocolError
from lazyfx.shared import wire
from lazyfx.shared.answers.answer_bounds import AnswerBounds
from lazyfx.shared.format_version import check_envelope
from lazyfx.shared.source.writable import (
    MAX_SOURCE_BYTES,
    characters,
    check_placeholders,
    check_size,
    unwritable_reason,
)
from lazyfx.shared.wire.canonical.body import CanonicalBody
from lazyfx.shared.wire.canonical.places import refused_call, refused_target
from lazyfx.shared.wire.targets.operator_schemas import operator_of_row
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

# Per allowed node; a call with more operands uses up those of other nodes.
_EDGES: Final = 32
# Operator namespaces that torch itself registers and that passes create.
_NAMESPACES: Final = frozenset({"aten", "prims", "quantized", "quantized_decomposed"})


@dataclass(frozen=True)
class CheckedCompiledGraph:
    """A checked compiled graph. Created only by `check_compiled_graph`.

    Attributes:
        message: Graph, names, and the origins of its parts.
        body: The graph, in canonical form.
    """

    message: graph_pb2.CompiledGraph
    body: CanonicalBody


def check_compiled_graph(
    data: bytes, sent: graph_pb2.GraphBody, passes: Sequence[pb.PassSpec], bounds: AnswerBounds
) -> CheckedCompiledGraph:
    """Check graph data that a server sent.

    It must be in canonical form, no larger than the passes can make the sent graph, call only
    allowed targets, be expressible as Python source, and give only parts of the sent graph as
    origins of its parts.

    Args:
        data: A serialized CompiledGraph.
        sent: The graph that was sent.
        passes: The requested passes.
        bounds: Bounds on the answer.

    Raises:
        DecodeError: It is not such a graph; names the field and the node.
    """
    compiled = graph_pb2.CompiledGraph()
    try:
        compiled.ParseFromString(data)
    except (ProtobufError, UnicodeDecodeError, RecursionError):
        raise DecodeError("the bytes are not a CompiledGraph message") from None
    check_envelope(compiled.graph)
    # Count nodes before doing work per node.
    try:
        counted = graph_pb2.GraphBody.FromString(compiled.graph.body)
    except (ProtobufError, UnicodeDecodeError, RecursionError):
        raise DecodeError("the bytes are not a GraphBody message") from None
    _check_counts(counted, sent, bounds)
    body = wire.read_canonical(compiled.graph.body)
    _check_targets(body.message, sent, passes)
    _check_calls(body.message)
    check_placeholders(body.message)
    _check_names(compiled, body.message)
    _check_origins(compiled, body.message, sent)
    return CheckedCompiledGraph(compiled, body)


def _check_counts(
    body: graph_pb2.GraphBody, sent: graph_pb2.GraphBody, bounds: AnswerBounds
) -> None:
    most = bounds.nodes(sum(len(graph.calls) for graph in sent.graphs))
    nodes = sum(len(graph.calls) for graph in body.graphs)
    if nodes > most:
        raise ProtocolError(
            f"the compiled graph has {nodes} nodes, at most {most} are allowed (max_growth, "
            f"extra_nodes)",
            field="graphs",
        )
    # A graph has no more distinct calls, targets or nested graphs than nodes. It may have more
    # values: a node that returns several tensors has one per tensor, and one for all of them.
    rows = {
        "graphs": (len(body.graphs), nodes),
        "calls": (len(body.calls), nodes),
        "targets": (len(body.targets), nodes),
        "values": (len(body.values), most),
    }
    for field, (count, most_rows) in rows.items():
        if count > most_rows:
            raise ProtocolError(f"{count} rows for {nodes} nodes", field=field)
    edges = sum(len(graph.operands) for graph in body.graphs)
    before = sum(len(graph.operands) for graph in sent.graphs)
    if edges > _EDGES * most + bounds.max_growth * before:
        raise ProtocolError(f"{edges} operands for {nodes} nodes", field="graphs")


def _check_targets(
    body: graph_pb2.GraphBody, sent: graph_pb2.GraphBody, passes: Sequence[pb.PassSpec]
) -> None:
    """Refuse operators of other libraries that are not in the request.

    Whether a target is in the allow-table is checked when it is decoded.
    """
    if not are_all_from_lazyfx(passes):
        return  # a plugin may use its own operators
    known = {row.name for row in sent.targets if operator_of_row(row)}
    known.update(_operators_of_rewrites(passes))
    for i, row in enumerate(body.targets):
        operator = operator_of_row(row)
        if operator and operator.namespace not in _NAMESPACES and row.name not in known:
            raise refused_target(
                f"{row.name[:200]!r} is an operator that was not in the graph and that no "
                "requested pass creates",
                body,
                i,
                ProtocolError,
            )


def _operators_of_rewrites(passes: Iterable[pb.PassSpec]) -> Iterator[str]:
    """The operators in the rewrites of a request."""
    for spec in passes:
        for rewrite in spec.rewrites:
            body = graph_pb2.GraphBody.FromString(rewrite.replacement.body)
            yield from (row.name for row in body.targets if operator_of_row(row))
        yield from _operators_of_rewrites(spec.passes)


def _check_calls(body: graph_pb2.GraphBody) -> None:
    """Check that each distinct call can be written faithfully as source."""
    targets = [(0, ""), *((row.kind, row.name) for row in body.targets)]
    strings = list(body.strings)
    lengths = []
    for i, call in enumerate(body.calls):
        reason = unwritable_reason(call, targets[call.target], strings)
        if reason is not None:
            raise refused_call(reason, body, i)
        lengths.append(characters(call, strings))
    check_size(body, lengths, None, MAX_SOURCE_BYTES)


def _check_names(compiled: graph_pb2.CompiledGraph, body: graph_pb2.GraphBody) -> None:
    given = compiled.graph.presentation
    if len(given.graphs) != len(body.graphs):
        raise DecodeError("must have one entry per graph", field="presentation.graphs")
    if len(given.device_indices) != len(body.devices):
        raise DecodeError("must have one entry per device", field="presentation.device_indices")
    for names, columns in zip(given.graphs, body.graphs, strict=True):
        if not len(names.stem) == len(names.suffix) == len(columns.calls):
            raise DecodeError("must have one name per node", field="presentation.stem")
        if len(names.attribute_paths) != len(columns.attributes):
            raise DecodeError(
                "must have one entry per attribute", field="presentation.attribute_paths"
            )


def _check_origins(
    compiled: graph_pb2.CompiledGraph, body: graph_pb2.GraphBody, sent: graph_pb2.GraphBody
) -> None:
    origins = compiled.provenance
    if len(origins) != len(body.graphs):
        raise DecodeError("must have one entry per graph", field="provenance")
    for number, (origin, columns) in enumerate(zip(origins, body.graphs, strict=True)):
        field = f"provenance[{number}]"
        if origin.source_graph > len(sent.graphs):
            raise DecodeError("refers to a graph that was not sent", field=field)
        source = sent.graphs[origin.source_graph - 1] if origin.source_graph else None
        _check_column(
            origin.nodes, len(columns.calls), len(source.calls) if source else 0, f"{field}.nodes"
        )
        _check_column(
            origin.attributes,
            len(columns.attributes),
            len(source.attributes) if source else 0,
            f"{field}.attributes",
        )
        for row, place in zip(columns.attributes, origin.attributes, strict=True):
            if place and source is not None:
                _check_origin(row, source.attributes[place - 1], body, sent, field)
    if origins[0].devices:
        _check_column(
            origins[0].devices, len(body.devices), len(sent.devices), "provenance[0].devices"
        )
    if _inputs(body) != _inputs(sent):
        raise DecodeError(
            "the compiled graph takes a different number of inputs than the graph that was sent"
        )


def _check_column(column: Sequence[int], count: int, most: int, field: str) -> None:
    if len(column) != count:
        raise DecodeError(
            "its length differs from that of the column that it describes", field=field
        )
    if max(column, default=0) > most:
        raise DecodeError("refers to a part that was not sent", field=field)


def _check_origin(
    row: graph_pb2.Attribute,
    source: graph_pb2.Attribute,
    body: graph_pb2.GraphBody,
    sent: graph_pb2.GraphBody,
    field: str,
) -> None:
    """Check that an attribute matches its claimed origin in kind, shape and dtype."""
    kind = row.WhichOneof("kind")
    if kind != source.WhichOneof("kind"):
        raise DecodeError("the attribute and its origin differ in kind", field=field)
    if kind != "tensor":
        return
    ours, theirs = body.tensors[row.tensor.tensor], sent.tensors[source.tensor.tensor]
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        raise DecodeError("the tensor and its origin differ in shape or dtype", field=field)


def _inputs(body: graph_pb2.GraphBody) -> int:
    placeholders = [call.opcode == graph_pb2.OPCODE_PLACEHOLDER for call in body.calls]
    return sum(placeholders[call] for call in body.graphs[0].calls)

"""The parts that a hostile server plays: what it changes, and what a client does with it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import torch
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from hostile_server import Lies, Parts, miss
from torch import nn
from torch.fx import GraphModule, symbolic_trace

from lazyfx.shared.grpc_status import rich_status
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

DCE, FOLD = "dead_code_elimination", "constant_fold"
CONTROL = "\x1b]0;owned\x07\x1b[31mred\u202e\r\x9b2J"


class Net(nn.Module):
    """Two layers of different shapes, a buffer, and a call with a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)
        self.register_buffer("scale", torch.arange(4.0))

    def forward(self, x, y):  # type: ignore[no-untyped-def]
        x = torch.clamp(x * (self.scale + 1), min=0)
        return self.second(self.first(x)) + y


def net() -> GraphModule:
    """The graph that is sent."""
    torch.manual_seed(0)
    return symbolic_trace(Net())


def asks(*subjects: str) -> Lies:
    """Says that something is missing, whatever it is sent."""
    return Lies(before_compile=lambda _, context: miss(context, *subjects))


def fails(status: status_pb2.Status) -> Lies:
    """Ends compiles with a status."""
    return Lies(
        before_compile=lambda _, context: context.abort_with_status(rpc_status.to_status(status))
    )


def answers(**fields: Any) -> Lies:
    """Answers a compile with fields of its own."""

    def edit(response: pb.CompileResponse) -> pb.CompileResponse:
        response.MergeFrom(pb.CompileResponse(**fields))
        return response

    return Lies(response=edit)


def sleeps(_: Any, __: Any) -> None:
    time.sleep(4.0)


def body_edit(edit: Callable[[graph_pb2.GraphBody], None]) -> Lies:
    """Changes the body of the compiled graph."""

    def change(compiled: graph_pb2.CompiledGraph) -> graph_pb2.CompiledGraph:
        body = graph_pb2.GraphBody.FromString(compiled.graph.body)
        edit(body)
        compiled.graph.body = body.SerializeToString(deterministic=True)
        return compiled

    return Lies(compiled=change)


def graph_edit(edit: Callable[[graph_pb2.CompiledGraph], None]) -> Lies:
    """Changes what accompanies the body."""

    def change(compiled: graph_pb2.CompiledGraph) -> graph_pb2.CompiledGraph:
        edit(compiled)
        return compiled

    return Lies(compiled=change)


def stream(edit: Callable[[Parts], Parts]) -> Lies:
    """Changes the stream of an artifact."""
    return Lies(parts=edit)


def header(size: int, kind: int = pb.ARTIFACT_KIND_GRAPH) -> pb.GetArtifactResponse:
    return pb.GetArtifactResponse(header=pb.ArtifactHeader(kind=kind, size_bytes=size))  # type: ignore[arg-type]


def chunk(data: bytes, offset: int = 0) -> pb.GetArtifactResponse:
    return pb.GetArtifactResponse(chunk=pb.ArtifactChunk(offset=offset, data=data))


def endless(first: pb.GetArtifactResponse | None, size: int) -> Callable[[Parts], Parts]:
    def parts(_: Parts) -> Iterator[Any]:
        if first is not None:
            yield first
        for i in itertools.count():
            yield chunk(b"x" * size, i * size)

    return parts


def tells_for_ever(_: Parts) -> Iterator[Any]:
    while True:
        yield pb.GetArtifactResponse(progress=pb.ArtifactProgress(stage=CONTROL))


def without(kind: str) -> Callable[[Parts], Parts]:
    return lambda parts: (part for part in parts if part.WhichOneof("part") != kind)


def with_offset(parts: Parts) -> Iterator[Any]:
    for part in parts:
        if part.HasField("chunk"):
            part.chunk.offset = 1
        yield part


def with_digest(parts: Parts) -> Iterator[Any]:
    for part in parts:
        if part.HasField("trailer"):
            part.trailer.digest.sha256 = bytes(32)
        yield part


def with_size(size: int) -> Callable[[Parts], Parts]:
    def edit(parts: Parts) -> Iterator[Any]:
        for part in parts:
            if part.HasField("header"):
                part.header.size_bytes = size
            yield part

    return edit


def doubled(parts: Parts) -> Iterator[Any]:
    kept = list(parts)
    yield from kept
    yield from kept


def artifact(data: bytes) -> Lies:
    """Sends, and signs, other bytes."""
    return Lies(artifact=lambda _, __: data)


def rename_target(old: str, kind: int, name: str) -> Callable[[graph_pb2.GraphBody], None]:
    def edit(body: graph_pb2.GraphBody) -> None:
        row = next(row for row in body.targets if row.name == old)
        row.kind, row.name = kind, name  # type: ignore[assignment]

    return edit


def keyword(name: str) -> Callable[[graph_pb2.GraphBody], None]:
    def edit(body: graph_pb2.GraphBody) -> None:
        body.strings[list(body.strings).index("min")] = name

    return edit


def grow(body: graph_pb2.GraphBody) -> None:
    columns = body.graphs[0]
    last = columns.calls.pop()
    columns.calls.extend([columns.calls[0]] * 2_000_000)
    columns.calls.append(last)


def swap_weights(compiled: graph_pb2.CompiledGraph) -> None:
    rows = compiled.provenance[0].attributes
    rows[:] = list(reversed(rows))


def set_rows(column: str, rows: list[int]) -> Callable[[graph_pb2.CompiledGraph], None]:
    def edit(compiled: graph_pb2.CompiledGraph) -> None:
        getattr(compiled.provenance[0], column)[:] = rows

    return edit


def name_nodes(stem: str) -> Callable[[graph_pb2.CompiledGraph], None]:
    def edit(compiled: graph_pb2.CompiledGraph) -> None:
        compiled.graph.presentation.graphs[0].stems[-1] = stem
        for origin in compiled.provenance:
            origin.nodes[:] = [0] * len(origin.nodes)

    return edit


def name_paths(path: str) -> Callable[[graph_pb2.CompiledGraph], None]:
    def edit(compiled: graph_pb2.CompiledGraph) -> None:
        paths = compiled.graph.presentation.graphs[0].attribute_paths
        paths[-1] = path
        compiled.provenance[0].attributes[len(paths) - 1] = 0

    return edit


def other_inputs(body: graph_pb2.GraphBody) -> None:
    """One input more, which nothing reads; operands count backwards and stay right."""
    columns = body.graphs[0]
    columns.calls.insert(0, columns.calls[0])
    del columns.values[:]
    del body.values[:]


def source(edit: Callable[[pb.GeneratedSource], None]) -> Lies:
    """Changes generated source."""

    def change(kind: int, data: bytes) -> bytes:
        if kind != pb.ARTIFACT_KIND_SOURCE:
            return data
        message = pb.GeneratedSource.FromString(data)
        edit(message)
        return message.SerializeToString()

    return Lies(artifact=change)


def code(text: str) -> Callable[[pb.GeneratedSource], None]:
    def edit(message: pb.GeneratedSource) -> None:
        message.code = text.replace("{}", message.code.strip("\n"))

    return edit


def imports(text: str) -> Callable[[pb.GeneratedSource], None]:
    def edit(message: pb.GeneratedSource) -> None:
        message.import_block = text.replace("{}", message.import_block)

    return edit


def add_child(message: pb.GeneratedSource) -> None:
    message.children.add(path="first", source=pb.GeneratedSource(code="import os"))


def statement(**fields: Any) -> Lies:
    """Signs other things of an artifact."""

    def edit(row: pb.ArtifactStatement) -> pb.ArtifactStatement:
        row.MergeFrom(pb.ArtifactStatement(**fields))
        return row

    return Lies(statement=edit)


def dated(created: int, expires: int) -> Lies:
    def edit(row: pb.ArtifactStatement) -> pb.ArtifactStatement:
        row.created.seconds, row.expires.seconds = created, expires
        return row

    return Lies(statement=edit)


def svg(inside: str, attributes: str = "") -> Lies:
    text = f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}>{inside}</svg>'
    return artifact(text.encode())


def unreadable_details() -> status_pb2.Status:
    status = rich_status(grpc.StatusCode.INTERNAL, CONTROL * 5000)
    for kind in (error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
        packed = any_pb2.Any()
        packed.Pack(kind())
        packed.value = b"\xff\xff\xff"
        status.details.append(packed)
    return status


def batch(edit: Callable[[Iterator[Any]], Iterator[Any]]) -> Lies:
    return Lies(batch=edit)


def with_ids(*ids: int) -> Callable[[Iterator[Any]], Iterator[Any]]:
    def edit(parts: Iterator[Any]) -> Iterator[Any]:
        for part, number in zip(list(parts) * len(ids), ids, strict=False):
            other = pb.CompileBatchResponse()
            other.CopyFrom(part)
            other.request_id = number
            yield other

    return edit


def missing(**fields: Any) -> Lies:
    """Asks for a tensor that may be asked for, and lies about what it has of it."""
    lies = asks("values/0/0")
    lies.missing = lambda answer: pb.FindMissingBlobsResponse(
        missing=fields.get("missing", answer.missing), received=fields.get("received", [0])
    )
    return lies


OTHER_DIGEST = graph_pb2.Digest(sha256=bytes(32), size_bytes=4)
EVIL_BLOCK = "{}\nimport os\nos.system('true')"

# What a server does, and the part of a client that meets it: "compile" with passes, or what is
# touched of the handle.
ROLES: dict[str, tuple[Lies, str]] = {
    "asks for values of a pass that reads none": (asks("values/0/0"), "compile"),
    "asks for all values at once": (asks(*(f"values/0/{i}" for i in range(5))), "compile"),
    "asks for one tensor twice": (asks("values/0/0", "values/0/0"), "fold"),
    "asks for a tensor that is not there": (asks("values/0/99"), "fold"),
    "asks for a tensor of another graph": (asks("values/7/0"), "fold"),
    "asks for a negative index": (asks("values/0/-1"), "fold"),
    "asks for a place that is none": (asks("values/a/b"), "fold"),
    "asks for digits without end": (asks("values/0/" + "9" * 240), "fold"),
    "asks for half a place": (asks("values/0"), "fold"),
    "asks for another blob": (asks("blobs/" + "00" * 32), "compile"),
    "asks for no digest": (asks("blobs/xyz"), "compile"),
    "asks for a file": (asks("files//etc/passwd"), "compile"),
    "asks with control characters": (asks(CONTROL), "compile"),
    "has never had enough": (asks("requests/00"), "compile"),
    "asks for what was not offered": (missing(missing=[OTHER_DIGEST]), "fold"),
    "has more than there is": (missing(received=[2**63]), "fold"),
    "counts otherwise": (missing(received=[0, 0]), "fold"),
    "never answers": (Lies(before_compile=sleeps), "slow"),
    "answers with noise": (Lies(response=lambda _: b"\xff\xff\xff\xff"), "compile"),
    "answers with a short key": (Lies(response=lambda r: pb.CompileResponse()), "compile"),
    "answers with a long token": (answers(request_token=b"x" * 99), "compile"),
    "announces constants without end": (
        answers(constants=[graph_pb2.Digest(sha256=bytes(32), size_bytes=2**60)] * 9),
        "compile",
    ),
    "announces a constant without a digest": (answers(constants=[graph_pb2.Digest()]), "compile"),
    "announces a constant and sends another": (answers(constants=[OTHER_DIGEST]), "graph"),
    "counts time that is none": (
        answers(report=pb.CompileReport(seconds=float("nan"))),
        "compile",
    ),
    "reports passes without end": (
        answers(report=pb.CompileReport(passes=[pb.PassReport(name="x")] * 200_000)),
        "compile",
    ),
    "reports modules without end": (
        answers(report=pb.CompileReport(modules=[pb.ModuleReport(path="x")] * 200_000)),
        "compile",
    ),
    "fails with details that are none": (fails(unreadable_details()), "compile"),
    "asks to come back at once, for ever": (
        fails(rich_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "later", retry_after=0.0)),
        "slow",
    ),
    "fails and asks to wait": (
        fails(rich_status(grpc.StatusCode.RESOURCE_EXHAUSTED, CONTROL, retry_after=1e9)),
        "compile",
    ),
    "answers a batch twice": (batch(with_ids(0, 0)), "batch"),
    "answers to no request": (batch(with_ids(77)), "batch"),
    "ends a batch early": (batch(lambda parts: iter([*parts][:0])), "batch"),
    "sends noise for a graph": (artifact(b"\xff" * 99), "graph"),
    "sends nothing for a graph": (artifact(b""), "graph"),
    "sends noise for parts": (stream(lambda _: iter([b"\xff\xff"])), "graph"),
    "sends a stream without end": (stream(endless(header(2**20), 2**16)), "graph"),
    "sends empty chunks without end": (stream(endless(header(2**20), 0)), "graph"),
    "begins in the middle": (stream(endless(None, 8)), "graph"),
    "announces 2^60 bytes": (stream(with_size(2**60)), "graph"),
    "announces more than it sends": (stream(with_size(2**20)), "graph"),
    "announces less than it sends": (stream(with_size(5)), "graph"),
    "tells of progress without end": (stream(tells_for_ever), "graph"),
    "sends no header": (stream(without("header")), "graph"),
    "sends no trailer": (stream(without("trailer")), "graph"),
    "sends no bytes": (stream(without("chunk")), "graph"),
    "sends it twice": (stream(doubled), "graph"),
    "sends it elsewhere": (stream(with_offset), "graph"),
    "sends another kind": (stream(lambda _: iter([header(9, pb.ARTIFACT_KIND_CODE)])), "graph"),
    "says another digest": (stream(with_digest), "graph"),
    "sends another format": (graph_edit(lambda c: setattr(c.graph, "format_version", 9)), "graph"),
    "sends a graph with a function of its own": (
        body_edit(rename_target("torch.clamp", graph_pb2.TARGET_KIND_FUNCTION, "os.system")),
        "graph",
    ),
    "sends a graph that evaluates text": (
        body_edit(rename_target("torch.clamp", graph_pb2.TARGET_KIND_FUNCTION, "builtins.eval")),
        "graph",
    ),
    "sends a graph with an operator of another library": (
        body_edit(rename_target("torch.clamp", graph_pb2.TARGET_KIND_OPERATOR, "liar::act")),
        "graph",
    ),
    "sends a keyword of Python's": (body_edit(keyword("lambda")), "graph"),
    "sends a keyword with code": (body_edit(keyword("a=__import__('os')")), "graph"),
    "sends two million nodes": (body_edit(grow), "graph"),
    "sends a graph with another input": (body_edit(other_inputs), "graph"),
    "binds weights elsewhere": (graph_edit(swap_weights), "graph"),
    "binds a tensor that was not sent": (graph_edit(set_rows("attributes", [99] * 5)), "graph"),
    "says too little of attributes": (graph_edit(set_rows("attributes", [])), "graph"),
    "says too little of nodes": (graph_edit(set_rows("nodes", [1])), "graph"),
    "says nothing of origins": (graph_edit(lambda c: c.ClearField("provenance")), "graph"),
    "keeps a tensor for itself": (graph_edit(set_rows("attributes", [0] * 5)), "graph"),
    "names a node with code": (graph_edit(name_nodes("a=__import__('os')")), "graph"),
    "names a node with a keyword": (graph_edit(name_nodes("lambda")), "graph"),
    "names an attribute with code": (graph_edit(name_paths('a");import os;("')), "graph"),
    "names an attribute over a method": (graph_edit(name_paths("forward")), "graph"),
    "has no names": (graph_edit(lambda c: c.graph.ClearField("presentation")), "graph"),
    "signs nothing": (Lies(signature=lambda _: pb.ArtifactSignature()), "source"),
    "signs with another key": (
        Lies(signature=lambda s: pb.ArtifactSignature(statement=s.statement, signature=bytes(64))),
        "source",
    ),
    "signs noise": (
        Lies(
            signature=lambda s: pb.ArtifactSignature(
                statement=b"\xff", signature=bytes(64), key_id=s.key_id
            )
        ),
        "source",
    ),
    "signs another module": (statement(module_key=bytes(32)), "source"),
    "signs another kind": (statement(kind=pb.ARTIFACT_KIND_PICKLE), "source"),
    "signed long ago": (dated(0, 1), "source"),
    "signs for ever": (dated(0, 2**62), "source"),
    "signs from the future": (dated(2**62, 2**62), "source"),
    "sends source that acts": (source(code("import os\nos.system('true')\n{}")), "source"),
    "sends source in another encoding": (source(code("# coding: utf-7\n{}")), "source"),
    "sends source that is none": (source(code("(" * 9999)), "source"),
    "sends no source": (source(code("")), "source"),
    "sends imports that act": (source(imports(EVIL_BLOCK)), "source"),
    "sends imports of its own": (source(imports("from os import system as torch")), "source"),
    "sends source of other parts": (source(add_child), "source"),
    "sends noise for source": (artifact(b"\xff\xff"), "source"),
    "draws a script": (svg("<script>alert(1)</script>"), "picture"),
    "draws a document": (svg("<foreignObject><p/></foreignObject>"), "picture"),
    "draws what acts when it loads": (svg("", 'onload="alert(1)"'), "picture"),
    "draws a link": (svg('<a href="http://x"><text/></a>'), "picture"),
    "draws an image": (svg('<image href="http://x"/>'), "picture"),
    "draws what it fetches": (svg('<rect fill="url(http://x)"/>'), "picture"),
    "draws with a style": (svg('<rect style="background:url(x)"/>'), "picture"),
    "draws other documents": (svg('<use href="#a"/>'), "picture"),
    "draws entities": (artifact(b'<!DOCTYPE s [<!ENTITY a "aa">]><svg>&a;</svg>'), "picture"),
    "draws deep": (svg("<g>" * 50_000 + "</g>" * 50_000), "picture"),
    "draws noise": (artifact(b"\xff\xfe<svg"), "picture"),
    "draws HTML": (artifact(b"<html><body/></html>"), "picture"),
    "writes code that is no text": (artifact(b"\xff\xfe"), "code"),
    "tells noise about itself": (Lies(self_description=lambda _: b"\xff\xff"), "info"),
    "tells noise about passes": (Lies(self_description=lambda _: b"\xff\xff"), "passes"),
    "tells noise about what it did": (Lies(self_description=lambda _: b"\xff\xff"), "stats"),
    "tells too much": (Lies(self_description=lambda _: bytes(40 * 2**20)), "info"),
}

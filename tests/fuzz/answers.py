"""Mutates valid answers of a server, and passes them to the client's readers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import GraphModule, symbolic_trace

from lazyfx.answers.compiled_graphs import check_compiled_graph
from lazyfx.answers.pictures import sanitize_picture
from lazyfx.artifacts.rebuilding import checked_source, rebuild
from lazyfx.capture.preparing import Prepared, Preparer
from lazyfx.report import cache_of, report_of
from lazyfx.shared import wire
from lazyfx.shared.answers.answer_bounds import DEFAULT_BOUNDS
from lazyfx.shared.answers.downloads import Download
from lazyfx.shared.answers.responses import check_response, read_message, read_text
from lazyfx.shared.grpc_status import rich_status, status_to_error
from lazyfx.shared.pass_specs import normalize
from lazyfx.shared.printable import make_printable
from lazyfx.shared.source.assembly import generate
from lazyfx.shared.torch_lazy_class import LazyGraphModule
from lazyfx.shared.wire.presentation import provenance
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.jobs.graph_picture import draw


class Net(nn.Module):
    """Parameters, a buffer, a nested literal, text and keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("scale", torch.arange(4.0))

    def forward(self, x, y=2.0, *rest):  # type: ignore[no-untyped-def]
        x = torch.clamp(self.layer(x) * self.scale, min=0.5)
        x = torch.nn.functional.gelu(x, approximate="tanh")[..., 1:3]
        return {"out": [x.transpose(-1, -2), (x == y, None)], "dtype": x.to(torch.float64)}


@dataclass(frozen=True)
class Sample:
    """A valid answer, and what a client does with it.

    Attributes:
        data: The bytes.
        read: Reads them, and raises errors of lazyfx alone.
    """

    data: bytes
    read: Callable[[bytes], object]


def samples() -> dict[str, Sample]:
    """One for each kind of answer that has a structure of its own."""
    module = symbolic_trace(Net())
    prepared = Preparer().prepare(module, normalize("constant_fold"))
    sent = graph_pb2.GraphBody.FromString(prepared.encoded.body)
    decoded = wire.decode(prepared.encoded.body, module_class=LazyGraphModule)
    encoded = wire.encode(decoded)
    compiled = graph_pb2.CompiledGraph(
        graph=encoded.message(), provenance=provenance(prepared.encoded.body, encoded)
    )
    data = compiled.SerializeToString()

    def read_graph(given: bytes) -> GraphModule:
        checked = check_compiled_graph(given, sent, prepared.requests.whole.passes, DEFAULT_BOUNDS)
        return rebuild(checked, prepared, {}, GraphModule)

    def read_body(given: bytes) -> GraphModule:
        other = graph_pb2.CompiledGraph()
        other.CopyFrom(compiled)
        other.graph.body = given
        return read_graph(other.SerializeToString())

    source = generate(module)
    message = pb.GeneratedSource(code=source.code, import_block=source.import_block)
    return {
        "graph": Sample(data, read_graph),
        "body": Sample(compiled.graph.body, read_body),
        "presentation": Sample(
            compiled.graph.presentation.SerializeToString(), _part(compiled, read_graph)
        ),
        "source": Sample(
            message.SerializeToString(),
            lambda given: checked_source(read_message(pb.GeneratedSource, given), module),
        ),
        "picture": Sample(draw(decoded).encode(), sanitize_picture),
        "text": Sample(source.code.encode(), read_text),
        "response": Sample(_response(), _read_response),
        "stream": Sample(b"".join(_stream(data)), _read_stream),
        "missing": Sample(_status(), lambda given: _read_status(given, prepared)),
    }


def _part(
    compiled: graph_pb2.CompiledGraph, read: Callable[[bytes], object]
) -> Callable[[bytes], object]:
    def read_names(given: bytes) -> object:
        other = graph_pb2.CompiledGraph()
        other.CopyFrom(compiled)
        other.graph.presentation.CopyFrom(read_message(graph_pb2.Presentation, given))
        return read(other.SerializeToString())

    return read_names


def _response() -> bytes:
    response = pb.CompileResponse(
        module_key=bytes(32),
        cache=pb.CacheResult(status=pb.CACHE_STATUS_MISS, explanation="the graph is new"),
        report=pb.CompileReport(seconds=1.0, pipeline="constant_fold"),
        constants=[graph_pb2.Digest(sha256=bytes(32), size_bytes=5)],
    )
    row = response.report.passes.add(name="analyze", note="3 matches")
    row.data.update({"flops": 3.5, "kinds": ["a", {"b": None}]})
    response.report.verified.max_difference = 0.5
    return response.SerializeToString()


def _read_response(given: bytes) -> object:
    response = read_message(pb.CompileResponse, given)
    check_response(response, DEFAULT_BOUNDS)
    make_printable(response)
    return repr((report_of(response.report, performed_here=1), cache_of(response.cache)))


def _stream(data: bytes) -> Iterator[bytes]:
    digest = graph_pb2.Digest(sha256=bytes(32), size_bytes=len(data))
    header = pb.ArtifactHeader(kind=pb.ARTIFACT_KIND_GRAPH, size_bytes=len(data))
    for part in (
        pb.GetArtifactResponse(progress=pb.ArtifactProgress(stage="tracing")),
        pb.GetArtifactResponse(header=header),
        *(
            pb.GetArtifactResponse(chunk=pb.ArtifactChunk(offset=i, data=data[i : i + 100]))
            for i in range(0, len(data), 100)
        ),
        pb.GetArtifactResponse(trailer=pb.ArtifactTrailer(digest=digest)),
    ):
        text = part.SerializeToString()
        yield len(text).to_bytes(4, "big") + text


def _read_stream(given: bytes) -> object:
    download = Download(
        pb.GetArtifactRequest(kind=pb.ARTIFACT_KIND_GRAPH), DEFAULT_BOUNDS, lambda _: None
    )
    download.begin()
    while given:
        size = int.from_bytes(given[:4], "big")
        download.take(read_message(pb.GetArtifactResponse, given[4 : 4 + size]))
        given = given[4 + size :]
    return download.finish()


def _status() -> bytes:
    import grpc

    return rich_status(
        grpc.StatusCode.FAILED_PRECONDITION,
        "send these",
        missing=["values/0/0", "values/0/1", "blobs/" + "ab" * 32],
        retry_after=3.0,
    ).SerializeToString()


def _read_status(given: bytes, prepared: Prepared) -> object:
    from google.rpc import status_pb2

    error = status_to_error(read_message(status_pb2.Status, given))
    subjects = getattr(error, "subjects", ())
    return Preparer().provide_missing(prepared, prepared.requests.whole, subjects)


_WORDS = (
    b"lambda", b"import os", b"\x1b[31m", b"\xe2\x80\xae", b"<script>", b"# COUNTER: 0", b"\r",
    b"__class__", b"self", b'");(', b"torch.ops", b"None", b"os.system", b"\x00", b"-1", b"9" * 40,
)  # fmt: skip


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One to four changes: bytes flipped, cut, doubled, moved, or words of Python and of terminals."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(changed) + 1)
        length = min(chance.choice((1, 1, 2, 4, 16, 64)), len(changed) - start)
        kind = chance.randrange(6)
        if kind == 0 and length:
            changed[start] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[start : start + length] = chance.randbytes(length)
        elif kind == 2:
            del changed[start : start + length]
        elif kind == 3:
            changed[start:start] = changed[start : start + length]
        elif kind == 4:
            word = chance.choice(_WORDS)
            changed[start : start + len(word)] = word
        elif length:
            changed[start] = chance.choice((0, 1, 2, 127, 128, 255))
    return bytes(changed)

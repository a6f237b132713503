"""Helpers for tests of a running server: raw calls, metrics, and control of its processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client.parser import text_string_to_metric_families
from torch.fx import GraphModule, symbolic_trace

from lazyfx.shared import wire
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub

DCE, CSE = "dead_code_elimination", "common_subexpression_elimination"
PATIENCE = 60.0


@contextlib.contextmanager
def connected(address: str) -> Iterator[GraphCompilerStub]:
    """A raw stub on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield GraphCompilerStub(channel)


def graph_of(number: float = 1.0, *, argument: str = "x") -> GraphModule:
    """A small graph; another number makes another digest. It has dead and doubled nodes."""
    namespace: dict[str, object] = {}
    source = (
        f"def f({argument}):\n    a = {argument} * {number!r}\n    b = {argument} * {number!r}\n"
    )
    source += f"    dead = {argument} + 9\n    return a + b\n"
    exec(source, namespace)  # the argument's name is part of what is tested
    return symbolic_trace(namespace["f"])


def long_graph(nodes: int) -> GraphModule:
    """A chain of additions whose generated source is long."""

    def f(x):  # type: ignore[no-untyped-def]
        for i in range(nodes):
            x = x + i
        return x

    return symbolic_trace(f)


def repetitive_body(nodes: int) -> bytes:
    """A graph of as many equal calls, which takes a worker a while."""
    body = graph_pb2.GraphBody()
    body.targets.add(kind=graph_pb2.TARGET_KIND_FUNCTION, name="torch.neg")
    operand = graph_pb2.Argument(operand=graph_pb2.Empty())
    body.calls.add(opcode=graph_pb2.OPCODE_PLACEHOLDER)
    body.calls.add(opcode=graph_pb2.OPCODE_CALL_FUNCTION, target=1, args=[operand])
    body.calls.add(opcode=graph_pb2.OPCODE_OUTPUT, args=[operand])
    body.graphs.add(calls=[0, *[1] * nodes, 2], operands=[1] * (nodes + 1))
    return body.SerializeToString(deterministic=True)


def compile_request(
    module: GraphModule, *passes: str, inline: bool = True, skip: bool = False
) -> pb.CompileRequest:
    """The request that a client would send for a graph."""
    encoded = wire.encode(module)
    request = pb.CompileRequest(
        graph_digest=graph_pb2.Digest(sha256=encoded.digest, size_bytes=len(encoded.body)),
        passes=[pb.PassSpec(name=name) for name in passes],
        skip_cache_lookup=skip,
    )
    if inline:
        request.graph.CopyFrom(encoded.message())
    return request


def request_of_body(
    body: bytes, presentation: graph_pb2.Presentation | None = None, *passes: str
) -> pb.CompileRequest:
    """A request for any bytes, with the digest that they really have."""
    request = pb.CompileRequest(
        graph_digest=graph_pb2.Digest(sha256=hashlib.sha256(body).digest(), size_bytes=len(body)),
        graph=graph_pb2.Graph(format_version=1, body=body),
        passes=[pb.PassSpec(name=name) for name in passes],
    )
    if presentation is not None:
        request.graph.presentation.CopyFrom(presentation)
    return request


@dataclass(frozen=True)
class Artifact:
    header: pb.ArtifactHeader
    data: bytes
    chunks: tuple[int, ...]
    trailer: pb.ArtifactTrailer


def artifact(
    stub: GraphCompilerStub,
    key: bytes,
    kind: pb.ArtifactKind.ValueType,
    presentation: graph_pb2.Presentation | None = None,
    offset: int = 0,
) -> Artifact:
    """Download an artifact, checking the order of its parts."""
    request = pb.GetArtifactRequest(module_key=key, kind=kind, offset=offset)
    if presentation is not None:
        request.presentation.CopyFrom(presentation)
    first, *middle, last = stub.GetArtifact(request, timeout=PATIENCE)
    assert first.WhichOneof("part") == "header"
    assert last.WhichOneof("part") == "trailer"
    data = b""
    for part in middle:
        assert part.chunk.offset == offset + len(data)
        data += part.chunk.data
    return Artifact(first.header, data, tuple(len(m.chunk.data) for m in middle), last.trailer)


@dataclass(frozen=True)
class Refusal:
    """The error of a failed call."""

    code: str
    message: str
    fields: dict[str, str]
    missing: tuple[str, ...]
    retry_after: float | None
    node: str = ""


def refusal_of(error: grpc.RpcError) -> Refusal:
    status = rpc_status.from_call(error) if error.trailing_metadata() else None
    fields: dict[str, str] = {}
    missing: list[str] = []
    retry_after, node = None, ""
    for detail in status.details if status else ():
        bad = error_details_pb2.BadRequest()
        failure = error_details_pb2.PreconditionFailure()
        retry = error_details_pb2.RetryInfo()
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(bad):
            fields.update({v.field: v.description for v in bad.field_violations})
        elif detail.Unpack(failure):
            assert all(v.type == "MISSING" for v in failure.violations)
            missing += [v.subject for v in failure.violations]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Unpack(info):
            node = info.metadata["node"]
    code, message = error.code().name, error.details() or ""
    return Refusal(code, message, fields, tuple(missing), retry_after, node)


def refused(call: Callable[[], object]) -> Refusal:
    """Make a call that must fail, and return its error."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return refusal_of(caught.value)


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def metrics(url: str) -> Samples:
    """The samples at a metrics URL, by name and sorted labels."""
    with urllib.request.urlopen(url, timeout=PATIENCE) as response:
        text = response.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of a metric over the series that have these labels."""
    wanted = set(labels.items())
    return sum(v for (n, have), v in samples.items() if n == name and wanted <= set(have))


def http_status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that is bound to happen; fails when it does not."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.02)


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


def worker_pids(server_pid: int) -> list[int]:
    """The worker processes of a server: what its fork server has forked."""
    return sorted(w for child in _children(server_pid) for w in _children(child))


@contextlib.contextmanager
def paused_workers(server_pid: int) -> Iterator[Sequence[int]]:
    """Workers that do nothing inside the block, so that what they are given stays under way."""
    pids = worker_pids(server_pid)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield pids
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

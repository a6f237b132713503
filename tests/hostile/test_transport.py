"""Attacks on the transport: slow, silent, large or many calls. Other callers must not notice."""

from __future__ import annotations

import gzip
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest
from server.harness import (
    artifact,
    compile_request,
    connected,
    graph_of,
    metrics,
    refused,
    total,
    wait_until,
)

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub

if TYPE_CHECKING:
    from servers import RunningServer


@pytest.fixture(scope="module")
def server(launch_for_file: Callable[..., RunningServer]) -> RunningServer:
    return launch_for_file(
        "--workers", "1", "--upload-idle-timeout", "1", "--min-upload-rate", "10000",
        "--max-metadata-bytes", "4096", "--max-streams", "4", "--stream-idle-timeout", "1",
        "--max-message-bytes", "1MiB", "--max-staged-bytes", "100000",
    )  # fmt: skip


@pytest.fixture
def stub(server: RunningServer) -> Iterator[GraphCompilerStub]:
    with connected(server.address) as found:
        yield found


@pytest.fixture(autouse=True)
def unharmed(server: RunningServer) -> Iterator[None]:
    """After each attack the server answers others, with the right digest, and runs on."""
    with connected(server.address) as stub:
        before = stub.Compile(compile_request(graph_of(1.25))).module_key
    entries = _entries(server)
    yield
    assert server.process.poll() is None
    with connected(server.address) as stub:
        assert stub.Compile(compile_request(graph_of(1.25)), timeout=30).module_key == before
    assert _entries(server) == entries
    samples = metrics(server.metrics_url)
    assert total(samples, "lazyfx_worker_restarts_total") == 0
    assert total(samples, "lazyfx_requests_total", code="INTERNAL") == 0


def _entries(server: RunningServer) -> int:
    """Entries of the store, once what is being written behind an answer is counted."""
    with connected(server.address) as stub:
        counts = [-1]
        while counts[-1:] * 3 != counts[-3:] or counts[-1] < 0:
            counts.append(int(stub.GetStats(pb.GetStatsRequest()).store.entries))
            time.sleep(0.02)
        return counts[-1]


def _chunk(data: bytes, size: int, offset: int = 0) -> pb.UploadBlobsRequest:
    digest = graph_pb2.Digest(sha256=hashlib.sha256(bytes(size)).digest(), size_bytes=size)
    return pb.UploadBlobsRequest(digest=digest, offset=offset, data=data)


def test_slow_uploads_are_ended(stub: GraphCompilerStub) -> None:
    def drip() -> Iterator[pb.UploadBlobsRequest]:
        for offset in range(1000):
            yield _chunk(b"\0", 1000, offset)
            time.sleep(0.2)

    refusal = refused(lambda: stub.UploadBlobs(drip(), timeout=60))
    assert (refusal.code, "min_upload_rate" in refusal.message) == ("DEADLINE_EXCEEDED", True)


def test_half_open_streams_are_ended(stub: GraphCompilerStub) -> None:
    release = threading.Event()

    def silent() -> Iterator[pb.CompileBatchRequest]:
        release.wait(60)
        yield from ()

    try:
        refusal = refused(lambda: list(stub.CompileBatch(silent(), timeout=60)))
    finally:
        release.set()
    assert (refusal.code, "stream_idle_timeout" in refusal.message) == ("DEADLINE_EXCEEDED", True)


def test_uploads_that_are_cancelled_leave_nothing(
    server: RunningServer, stub: GraphCompilerStub
) -> None:
    for _ in range(50):  # together far more than may be staged at a time
        release = threading.Event()

        def almost(release: threading.Event = release) -> Iterator[pb.UploadBlobsRequest]:
            yield _chunk(bytes(50_000), 60_000)
            release.wait(30)

        call = stub.UploadBlobs.future(almost(), timeout=30)
        time.sleep(0.01)
        call.cancel()
        release.set()
    refusal = refused(lambda: stub.UploadBlobs(iter([_chunk(bytes(200_000), 200_001)]), timeout=30))
    assert (refusal.code, "max_staged_bytes" in refusal.message) == ("RESOURCE_EXHAUSTED", True)

    def room() -> bool:
        refusal = refused(
            lambda: stub.UploadBlobs(iter([_chunk(bytes(99_999), 100_001)]), timeout=30)
        )
        return refusal.code == "INVALID_ARGUMENT"  # it was accepted, and ended early

    wait_until(room, "staged bytes given back")


def test_giant_metadata_is_refused(stub: GraphCompilerStub) -> None:
    giant = [("x-giant", "a" * 100_000)]
    refusal = refused(lambda: stub.GetStats(pb.GetStatsRequest(), metadata=giant, timeout=30))
    assert refusal.code in ("RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE", "CANCELLED")
    many = [(f"x-{i}", "a" * 100) for i in range(1000)]
    refusal = refused(lambda: stub.GetStats(pb.GetStatsRequest(), metadata=many, timeout=30))
    assert refusal.code in ("RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE", "CANCELLED")


def test_compression_bombs_stop_at_the_bound_on_messages(server: RunningServer) -> None:
    bomb = pb.CompileRequest(graph=graph_pb2.Graph(body=bytes(64 * 2**20)))
    assert len(gzip.compress(bomb.SerializeToString())) < 100_000
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(
        server.address, options=options, compression=grpc.Compression.Gzip
    ) as channel:
        stub = GraphCompilerStub(channel)
        refusal = refused(lambda: stub.Compile(bomb, timeout=60))
    assert refusal.code == "RESOURCE_EXHAUSTED"


def test_reflection_is_off(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        for version in ("v1alpha", "v1"):
            path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
            call = channel.stream_stream(path)
            refusal = refused(lambda call=call: list(call(iter([b""]), timeout=30)))
            assert refusal.code == "UNIMPLEMENTED"


PATHS = ["../../etc/passwd", "/etc/passwd\0", "%2e%2e/" * 8, "a" * 31, "a" * 33, ""]


@pytest.mark.parametrize("text", PATHS)
def test_ids_that_look_like_paths_are_refused(stub: GraphCompilerStub, text: str) -> None:
    request = pb.GetArtifactRequest(module_key=text.encode(), kind=pb.ARTIFACT_KIND_CODE)
    assert refused(lambda: list(stub.GetArtifact(request, timeout=30))).code == "INVALID_ARGUMENT"
    asked = pb.FindMissingBlobsRequest(digests=[graph_pb2.Digest(sha256=text.encode())])
    assert refused(lambda: stub.FindMissingBlobs(asked, timeout=30)).code == "INVALID_ARGUMENT"


def test_downloads_from_hostile_offsets(stub: GraphCompilerStub) -> None:
    key = stub.Compile(compile_request(graph_of(1.25))).module_key
    whole = artifact(stub, key, pb.ARTIFACT_KIND_GRAPH)
    size = len(whole.data)
    assert artifact(stub, key, pb.ARTIFACT_KIND_GRAPH, offset=size).data == b""
    for offset in (size + 1, 2**31, 2**63, 2**64 - 1):
        request = pb.GetArtifactRequest(module_key=key, kind=pb.ARTIFACT_KIND_GRAPH, offset=offset)
        refusal = refused(lambda request=request: list(stub.GetArtifact(request, timeout=30)))
        assert (refusal.code, list(refusal.fields)) == ("INVALID_ARGUMENT", ["offset"])


def test_an_oversized_batch_is_worked_off_within_its_bound(stub: GraphCompilerStub) -> None:
    good = compile_request(graph_of(1.25))
    requests = [pb.CompileBatchRequest(request_id=i, request=good) for i in range(2000)]
    answers = list(stub.CompileBatch(iter(requests), timeout=120))
    assert {a.request_id for a in answers} == set(range(2000))
    big = pb.CompileBatchRequest(
        request=pb.CompileRequest(graph=graph_pb2.Graph(body=bytes(2**21)))
    )
    refusal = refused(lambda: list(stub.CompileBatch(iter([big]), timeout=30)))
    assert refusal.code == "RESOURCE_EXHAUSTED"


def test_a_storm_of_connections(server: RunningServer) -> None:
    host, _, port = server.address.rpartition(":")

    def rude(number: int) -> None:
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if number % 2 else b"\xff" * 100)

    def polite(_: int) -> bool:
        with connected(server.address) as own:
            return own.GetStats(pb.GetStatsRequest(), timeout=60) is not None

    with ThreadPoolExecutor(8) as pool:
        storm = [pool.submit(rude, i) for i in range(300)]
        assert all(pool.map(polite, range(20)))
        for attempt in storm:
            attempt.exception()  # connections may be refused; nothing else may happen


def test_streams_over_the_bound_wait_and_delay_no_other_call(
    server: RunningServer, stub: GraphCompilerStub
) -> None:
    release = threading.Event()

    def held() -> Iterator[pb.UploadBlobsRequest]:
        release.wait(60)
        yield from ()

    calls = [stub.UploadBlobs.future(held(), timeout=60) for _ in range(4)]
    time.sleep(0.3)
    try:
        refusal = refused(lambda: stub.GetStats(pb.GetStatsRequest(), timeout=0.3))
        assert refusal.code == "DEADLINE_EXCEEDED"
        with connected(server.address) as other:
            assert other.GetStats(pb.GetStatsRequest(), timeout=30) is not None
    finally:
        release.set()
        for call in calls:
            call.cancel()


def test_a_call_without_a_deadline_gets_the_server_s(launch: Callable[..., RunningServer]) -> None:
    server = launch("--workers", "1", "--max-call-seconds", "1")
    release = threading.Event()

    def silent() -> Iterator[pb.CompileBatchRequest]:
        release.wait(60)
        yield from ()

    with connected(server.address) as stub:
        try:
            refusal = refused(lambda: list(stub.CompileBatch(silent())))
        finally:
            release.set()
        assert (refusal.code, "max_call_seconds" in refusal.message) == ("DEADLINE_EXCEEDED", True)
        assert stub.GetStats(pb.GetStatsRequest()) is not None

"""CompileBatch, GetArtifact, FindMissingBlobs and UploadBlobs over gRPC."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import queue
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch
from harness import (
    CSE,
    DCE,
    PATIENCE,
    artifact,
    compile_request,
    connected,
    graph_of,
    long_graph,
    metrics,
    paused_workers,
    refusal_of,
    refused,
    total,
    wait_until,
)

from lazyfx.shared import wire
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

_numbers = itertools.count(1)
_CHUNK = 512 * 1024


@pytest.fixture(scope="module")
def server(launch_for_file):
    return launch_for_file(
        "--workers", "2", "--upload-idle-timeout", "1", "--max-blob-bytes", "2000000"
    )


@pytest.fixture
def stub(server):
    with connected(server.address) as stub:
        yield stub


@pytest.fixture
def fresh():
    return graph_of(float(next(_numbers)))


class Sending:
    """A request stream that the test feeds."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[object] = queue.SimpleQueue()

    def __iter__(self):
        return iter(self._items.get, None)

    def send(self, item: object) -> None:
        self._items.put(item)

    def end(self) -> None:
        self._items.put(None)


def batch_request(number: int, request: pb.CompileRequest) -> pb.CompileBatchRequest:
    return pb.CompileBatchRequest(request_id=number, request=request)


class TestCompileBatch:
    def test_answers_carry_the_ids_of_their_requests(self, stub):
        graphs = {i + 100: graph_of(float(next(_numbers))) for i in range(10)}
        requests = [batch_request(i, compile_request(g, DCE)) for i, g in graphs.items()]
        answers = {a.request_id: a for a in stub.CompileBatch(iter(requests), timeout=PATIENCE)}
        assert answers.keys() == graphs.keys()
        keys = {a.response.module_key for a in answers.values()}
        assert len(keys) == len(graphs)
        for i, graph in graphs.items():
            again = stub.Compile(compile_request(graph, DCE, inline=False))
            assert again.module_key == answers[i].response.module_key

    def test_a_bad_request_does_not_end_the_stream(self, stub, fresh):
        bad = compile_request(fresh, "no_such_pass")
        unknown = compile_request(graph_of(float(next(_numbers))), inline=False)
        requests = [
            batch_request(1, bad),
            batch_request(2, unknown),
            batch_request(3, compile_request(fresh, DCE)),
        ]
        answers = {a.request_id: a for a in stub.CompileBatch(iter(requests), timeout=PATIENCE)}
        assert answers[1].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert "no_such_pass" in answers[1].error.message
        assert answers[1].error.details
        assert answers[2].error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
        assert answers[3].response.cache.status == pb.CACHE_STATUS_MISS

    def test_answers_come_as_they_finish(self, server, stub, fresh):
        known = graph_of(float(next(_numbers)))
        stub.Compile(compile_request(known, DCE))
        sending = Sending()
        answers = stub.CompileBatch(iter(sending), timeout=PATIENCE)
        with paused_workers(server.pid):
            sending.send(batch_request(1, compile_request(fresh, DCE)))
            sending.send(batch_request(2, compile_request(known, DCE)))
            first = next(answers)
        sending.end()
        assert first.request_id == 2
        assert [a.request_id for a in answers] == [1]

    def test_an_answer_comes_before_the_stream_has_ended(self, stub, fresh):
        sending = Sending()
        answers = stub.CompileBatch(iter(sending), timeout=PATIENCE)
        for i in range(3):
            sending.send(batch_request(i, compile_request(fresh, DCE)))
            assert next(answers).request_id == i
        sending.end()
        assert not list(answers)

    def test_a_caller_that_leaves_frees_the_server(self, server, stub, fresh):
        sending = Sending()
        answers = stub.CompileBatch(iter(sending), timeout=PATIENCE)
        with paused_workers(server.pid):
            sending.send(batch_request(1, compile_request(fresh, DCE)))
            wait_until(
                lambda: total(metrics(server.metrics_url), "lazyfx_in_flight", stage="compile"),
                "a compile in flight",
            )
            answers.cancel()
        sending.end()
        wait_until(
            lambda: not total(metrics(server.metrics_url), "lazyfx_in_flight"), "nothing in flight"
        )
        assert stub.Compile(compile_request(fresh, DCE)).cache.status == pb.CACHE_STATUS_HIT


@pytest.fixture(scope="module")
def large(server):
    """A module whose code takes several chunks, rendered already."""
    with connected(server.address) as stub:
        key = stub.Compile(compile_request(long_graph(15_000)), timeout=PATIENCE).module_key
        return key, artifact(stub, key, pb.ARTIFACT_KIND_CODE)


class TestGetArtifact:
    def test_large_artifacts_come_in_chunks_with_a_digest(self, large):
        _, code = large
        assert len(code.chunks) >= 2
        assert max(code.chunks) <= _CHUNK
        assert code.header.size_bytes == len(code.data)
        assert code.header.kind == pb.ARTIFACT_KIND_CODE
        assert code.header.media_type.startswith("text/x-python")
        assert code.trailer.digest.sha256 == hashlib.sha256(code.data).digest()
        assert code.trailer.digest.size_bytes == len(code.data)

    @pytest.mark.parametrize("kept", [0, 1, _CHUNK - 1, _CHUNK, _CHUNK + 7])
    def test_a_download_resumes(self, stub, large, kept):
        key, code = large
        rest = artifact(stub, key, pb.ARTIFACT_KIND_CODE, offset=kept)
        assert code.data[:kept] + rest.data == code.data
        assert rest.trailer.digest == code.trailer.digest

    def test_from_its_end_there_is_nothing_more(self, stub, large):
        key, code = large
        rest = artifact(stub, key, pb.ARTIFACT_KIND_CODE, offset=len(code.data))
        assert rest.data == b""
        assert rest.trailer.digest == code.trailer.digest

    def test_beyond_its_end_is_refused(self, stub, large):
        key, code = large
        refusal = refused(
            lambda: artifact(stub, key, pb.ARTIFACT_KIND_CODE, offset=len(code.data) + 1)
        )
        assert refusal.code == "INVALID_ARGUMENT"
        assert "offset" in refusal.fields

    def test_concurrent_callers_share_one_rendering(self, server, stub, fresh):
        key = stub.Compile(compile_request(fresh, DCE, CSE)).module_key
        before = metrics(server.metrics_url)
        with ThreadPoolExecutor(8) as threads:
            with paused_workers(server.pid):
                asked = [
                    threads.submit(artifact, stub, key, pb.ARTIFACT_KIND_CODE) for _ in range(8)
                ]
                wait_until(
                    lambda: total(metrics(server.metrics_url), "lazyfx_in_flight", stage="render"),
                    "a rendering",
                )
                for _ in range(5):
                    stub.GetServerInfo(pb.GetServerInfoRequest())
            artifacts = [a.result() for a in asked]
        after = metrics(server.metrics_url)
        assert len({a.data for a in artifacts}) == 1
        assert [a.header.rendered for a in artifacts].count(True) == 1
        for name, labels in (
            ("lazyfx_recompiles_performed_total", {"trigger": "code"}),
            ("lazyfx_render_seconds_count", {"kind": "code"}),
            ("lazyfx_artifacts_total", {"kind": "code", "source": "rendered"}),
        ):
            assert total(after, name, **labels) - total(before, name, **labels) == 1, name
        cached = {"kind": "code", "source": "cached"}
        grew = total(after, "lazyfx_artifacts_total", **cached) - total(
            before, "lazyfx_artifacts_total", **cached
        )
        assert grew == 7

    def test_code_is_generated_once_for_code_pickle_and_package(self, stub, fresh):
        key = stub.Compile(compile_request(fresh, DCE)).module_key
        for kind in (
            pb.ARTIFACT_KIND_CODE, pb.ARTIFACT_KIND_PICKLE, pb.ARTIFACT_KIND_PACKAGE,
            pb.ARTIFACT_KIND_SOURCE, pb.ARTIFACT_KIND_PICTURE, pb.ARTIFACT_KIND_GRAPH,
        ):  # fmt: skip
            got = artifact(stub, key, kind)
            assert got.data
            assert got.trailer.recompiles.performed == 1
        again = stub.Compile(compile_request(fresh, DCE))
        assert again.report.recompiles.performed == 1

    def test_what_a_kind_is(self, stub, fresh):
        key = stub.Compile(compile_request(fresh, DCE)).module_key
        code = artifact(stub, key, pb.ARTIFACT_KIND_CODE)
        assert b"def forward(self, n0)" in code.data
        module = pickle.loads(artifact(stub, key, pb.ARTIFACT_KIND_PICKLE).data)  # our own server's
        assert torch.equal(module(torch.ones(2)), fresh(torch.ones(2)))
        graph = artifact(stub, key, pb.ARTIFACT_KIND_GRAPH)
        compiled = graph_pb2.CompiledGraph.FromString(graph.data)
        assert len(compiled.graph.presentation.graphs) == 1
        source = pb.GeneratedSource.FromString(artifact(stub, key, pb.ARTIFACT_KIND_SOURCE).data)
        assert source.code == code.data.decode()
        picture = artifact(stub, key, pb.ARTIFACT_KIND_PICTURE)
        assert picture.header.media_type == "image/svg+xml"

    def test_an_unknown_key_is_not_found(self, stub):
        refusal = refused(lambda: artifact(stub, bytes(32), pb.ARTIFACT_KIND_CODE))
        assert refusal.code == "NOT_FOUND"
        assert "compile again" in refusal.message

    @pytest.mark.parametrize("key", [b"", b"short", bytes(33), b"../../etc/passwd"])
    def test_a_malformed_key_is_refused(self, stub, key):
        refusal = refused(lambda: artifact(stub, key, pb.ARTIFACT_KIND_CODE))
        assert refusal.code == "INVALID_ARGUMENT"
        assert "module_key" in refusal.fields

    @pytest.mark.parametrize("kind", [0, 99])
    def test_an_unknown_kind_is_refused(self, stub, fresh, kind):
        key = stub.Compile(compile_request(fresh, DCE)).module_key
        refusal = refused(lambda: artifact(stub, key, kind))
        assert refusal.code == "INVALID_ARGUMENT"
        assert "kind" in refusal.fields

    def test_a_constant_that_is_not_the_modules_is_refused(self, stub, fresh):
        key = stub.Compile(compile_request(fresh, DCE)).module_key
        secret = b"another caller's tensor"
        stub.UploadBlobs(iter([pb.UploadBlobsRequest(digest=digest_of(secret), data=secret)]))
        request = pb.GetArtifactRequest(
            module_key=key, kind=pb.ARTIFACT_KIND_CONSTANT, constant=digest_of(secret)
        )
        refusal = refused(lambda: list(stub.GetArtifact(request)))
        assert refusal.code == "INVALID_ARGUMENT"
        assert "constant" in refusal.fields


def digest_of(data: bytes) -> graph_pb2.Digest:
    return graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))


def chunks_of(data: bytes, *pieces: tuple[int, int], size: int | None = None):
    """Chunks of `data` as (start, end), announced with the size that is given."""
    digest = digest_of(data)
    if size is not None:
        digest.size_bytes = size
    return [
        pb.UploadBlobsRequest(digest=digest, offset=start, data=data[start:end])
        for start, end in pieces
    ]


class TestBlobs:
    def test_missing_until_uploaded(self, stub):
        data, other = b"a blob of this test", b"never sent"
        ask = pb.FindMissingBlobsRequest(digests=[digest_of(other), digest_of(data)])
        assert list(stub.FindMissingBlobs(ask).missing) == [digest_of(other), digest_of(data)]
        chunks = chunks_of(data, (0, 5), (5, 9), (9, len(data)))
        answer = stub.UploadBlobs(iter(chunks))
        assert (answer.stored, answer.stored_bytes) == (1, len(data))
        assert list(stub.FindMissingBlobs(ask).missing) == [digest_of(other)]

    def test_several_blobs_one_after_the_other(self, stub):
        blobs = [b"first blob", b"", b"third blob"]
        chunks = [c for blob in blobs for c in chunks_of(blob, (0, len(blob)))]
        assert stub.UploadBlobs(iter(chunks)).stored == 3
        ask = pb.FindMissingBlobsRequest(digests=[digest_of(b) for b in blobs])
        assert not stub.FindMissingBlobs(ask).missing

    BAD = {
        "out of order": ("offset", lambda d: chunks_of(d, (0, 4), (8, 12), (4, 8))),
        "overlapping": ("offset", lambda d: chunks_of(d, (0, 8), (5, 12))),
        "repeated": ("offset", lambda d: chunks_of(d, (0, 8), (0, 8))),
        "with a gap": ("offset", lambda d: chunks_of(d, (4, len(d)))),
        "longer than announced": ("data", lambda d: chunks_of(d, (0, 8), (8, len(d)), size=10)),
        "cut short": ("data", lambda d: chunks_of(d, (0, 8))),
        "empty chunk": ("data", lambda d: chunks_of(d, (0, 0), (0, len(d)))),
        "over the bound": ("digest.size_bytes", lambda d: chunks_of(d, (0, 8), size=2**62)),
        "wrong digest": (
            "digest.sha256",
            lambda d: [
                pb.UploadBlobsRequest(
                    digest=digest_of(d), data=bytes(len(d))
                )
            ],
        ),
        "two at once": (
            "digest",
            lambda d: [*chunks_of(d, (0, 8)), *chunks_of(d + b"?", (0, 8))],
        ),
        "no digest": ("digest.sha256", lambda d: [pb.UploadBlobsRequest(data=d)]),
    }  # fmt: skip

    @pytest.mark.parametrize("case", BAD)
    def test_a_bad_upload_is_refused_and_leaves_nothing(self, stub, case):
        data = f"the bytes of case {case}".encode()
        field, make = self.BAD[case]
        refusal = refused(lambda: stub.UploadBlobs(iter(make(data)), timeout=PATIENCE))
        assert refusal.code == "INVALID_ARGUMENT"
        assert field in refusal.fields
        ask = pb.FindMissingBlobsRequest(digests=[digest_of(data)])
        assert list(stub.FindMissingBlobs(ask).missing) == [digest_of(data)]

    def test_an_idle_upload_is_ended(self, stub):
        sending = Sending()
        sending.send(chunks_of(b"half of a blob", (0, 4))[0])
        call = stub.UploadBlobs.future(iter(sending), timeout=PATIENCE)
        error = call.exception()
        sending.end()
        refusal = refusal_of(error)
        assert refusal.code == "DEADLINE_EXCEEDED"
        assert "upload_idle_timeout" in refusal.message

    def test_idle_uploads_delay_no_other_call(self, stub, fresh):
        streams = [Sending() for _ in range(50)]
        calls = []
        for i, sending in enumerate(streams):
            sending.send(chunks_of(f"idle blob {i}".encode(), (0, 3))[0])
            calls.append(stub.UploadBlobs.future(iter(sending), timeout=PATIENCE))
        started = time.monotonic()
        assert stub.Compile(compile_request(fresh, DCE)).cache.status == pb.CACHE_STATUS_MISS
        assert time.monotonic() - started < PATIENCE
        for call, sending in zip(calls, streams, strict=True):
            sending.end()
            call.cancel()

    def test_a_malformed_digest_is_named_by_its_place(self, stub):
        ask = pb.FindMissingBlobsRequest(digests=[digest_of(b"x"), graph_pb2.Digest(sha256=b"y")])
        refusal = refused(lambda: stub.FindMissingBlobs(ask))
        assert refusal.code == "INVALID_ARGUMENT"
        assert "digests[1].sha256" in refusal.fields

    def test_a_graph_over_the_bound_cannot_come_in_as_a_blob(self, launch):
        server = launch("--workers", "1", "--max-graph-bytes", "300")
        body = wire.encode(long_graph(50)).body
        request = compile_request(long_graph(50), inline=False)
        with connected(server.address) as stub:
            stub.UploadBlobs(iter([pb.UploadBlobsRequest(digest=digest_of(body), data=body)]))
            refusal = refused(lambda: stub.Compile(request))
        assert refusal.code == "INVALID_ARGUMENT"
        assert "max_graph_bytes" in refusal.message

"""Calls that a server refuses for now are retried after its delay, within their timeout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import torch
from grpc_status import rpc_status
from harness import DCE, graph_of

import lazyfx
from lazyfx.errors import OverloadedError
from lazyfx.shared.grpc_status import rich_status
from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub
from lazyfx.v1.compiler_pb2_grpc import add_GraphCompilerServicer_to_server as add_to_server

METHODS = ("Compile", "GetArtifact", "FindMissingBlobs", "UploadBlobs", "ListPasses")


@pytest.fixture(scope="module")
def server(launch_for_file):
    return launch_for_file("--workers", "1")


class Busy:
    """A proxy in front of the real server that refuses the first calls of each method."""

    def __init__(self, target: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(target, options=options)
        self._stub = GraphCompilerStub(self._channel)
        self.calls: Counter[str] = Counter()
        self.refusals = 0
        self.retry_after: float | None = None

    def __getattr__(self, method: str) -> Any:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            self.calls[method] += 1
            if self.calls[method] <= self.refusals:
                status = rich_status(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", retry_after=self.retry_after
                )
                context.abort_with_status(rpc_status.to_status(status))
            try:
                return getattr(self._stub, method)(request, timeout=60)
            except grpc.RpcError as error:
                context.set_trailing_metadata(error.trailing_metadata())
                context.abort(error.code(), error.details())

        if method in ("GetArtifact", "CompileBatch"):
            return lambda request, context: iter(list(handle(request, context)))
        return handle


@pytest.fixture
def busy(server: Any) -> Iterator[tuple[Busy, str]]:
    running = grpc.server(ThreadPoolExecutor(8))
    before = Busy(server.address)
    add_to_server(before, running)
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield before, f"127.0.0.1:{port}"
    running.stop(None).wait()
    before._channel.close()


class Table(torch.nn.Module):
    """Has something to fold, so its values are sent."""

    def __init__(self, seed: float) -> None:
        super().__init__()
        self.register_buffer("table", torch.full((1000,), seed))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.sin(self.table) * 2


def test_every_kind_of_call_is_retried(busy: Any) -> None:
    server, address = busy
    server.refusals, server.retry_after = 2, 0.01
    x = torch.ones(1000)
    program = torch.export.export(Table(0.5), (x,))
    with lazyfx.connect(address, timeout=60) as client:
        remote = client.compile(program, ["constant_fold"])
        assert torch.allclose(remote(x), program.module()(x))
        assert client.passes()
        (found,) = dict(client.compile_many([(graph_of(), [DCE])])).values()
        assert isinstance(found, lazyfx.RemoteModule)
    assert all(server.calls[method] >= 3 for method in METHODS), server.calls


def test_a_stream_that_is_refused_while_it_is_written(busy: Any) -> None:
    server, address = busy
    server.retry_after = 0.01
    graphs = [(graph_of(float(n)), [DCE]) for n in range(32)]
    with lazyfx.connect(address, timeout=60) as client:
        for _ in range(20):
            server.refusals = server.calls["CompileBatch"] + 1
            found = dict(client.compile_many(graphs))
            assert all(isinstance(each, lazyfx.RemoteModule) for each in found.values()), found
            assert len(found) == 32


@pytest.mark.parametrize("retry_after", [300.0, 1e9, None])
def test_a_delay_beyond_the_timeout_fails_at_once(busy: Any, retry_after: float | None) -> None:
    server, address = busy
    server.refusals, server.retry_after = 10**6, retry_after
    with lazyfx.connect(address, timeout=30) as client:
        for call in (lambda: client.compile(graph_of(), [DCE]), client.passes):
            with pytest.raises(OverloadedError):
                call()
    assert set(server.calls.values()) == {1}


@pytest.mark.parametrize("retry_after", [0.0, 1e-9])
def test_a_server_cannot_make_a_client_hammer_it(busy: Any, retry_after: float) -> None:
    server, address = busy
    server.refusals, server.retry_after = 10**6, retry_after
    with lazyfx.connect(address, timeout=2) as client, pytest.raises(OverloadedError):
        client.compile(graph_of(), [DCE])
    assert 2 <= server.calls["Compile"] < 10

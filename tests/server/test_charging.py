"""The interceptor identifies a caller once, and charges each call before the service sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1.compiler_pb2_grpc import (
    GraphCompilerServicer,
    GraphCompilerStub,
    add_GraphCompilerServicer_to_server,
)
from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.tenants import Tenants
from lazyfx_server.rpc.authentication import Authenticator
from lazyfx_server.rpc.caller import current_caller
from lazyfx_server.rpc.calls_in_progress import CallsInProgress
from lazyfx_server.rpc.interceptors import CallInterceptor
from lazyfx_server.rpc.pacing import RefusalPacing
from lazyfx_server.security.bearer_tokens import TokenFile, add_token
from lazyfx_server.settings.limits import QuotaLimits
from lazyfx_server.telemetry import Observers


class _Counting(TokenFile):
    asked = 0

    def tenant_of(self, token: str) -> str | None:
        self.asked += 1
        return super().tenant_of(token)


class _Service(GraphCompilerServicer):
    """Answers with the caller's name; charges nothing."""

    async def Compile(self, request: Any, context: Any) -> pb.CompileResponse:
        return pb.CompileResponse(request_token=current_caller().tenant.name.encode())

    async def FindMissingBlobs(self, request: Any, context: Any) -> pb.FindMissingBlobsResponse:
        return pb.FindMissingBlobsResponse()

    async def ListPasses(self, request: Any, context: Any) -> pb.ListPassesResponse:
        return pb.ListPassesResponse()


async def test_a_caller_is_identified_once_and_charged_for_what_the_call_is(tmp_path: Path) -> None:
    token = add_token(tmp_path / "tokens", "alice")
    tokens = _Counting(tmp_path / "tokens")
    quotas = Quotas(QuotaLimits(quota_requests=3, quota_bytes=100))
    calls = CallsInProgress(Observers(), 60.0, RefusalPacing(0))
    interceptor = CallInterceptor(calls, Authenticator(Tenants(b"secret"), tokens), quotas)
    calls.open()
    server = grpc.aio.server(interceptors=[interceptor])
    add_GraphCompilerServicer_to_server(_Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    metadata = [("authorization", f"Bearer {token}")]
    request = pb.CompileRequest(request_token=bytes(100))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = GraphCompilerStub(channel)
        answer = await stub.Compile(request, metadata=metadata)
        assert (answer.request_token, tokens.asked) == (b"alice", 1)
        with pytest.raises(grpc.aio.AioRpcError, match="quota_bytes"):
            await stub.Compile(request, metadata=metadata)
        await stub.FindMissingBlobs(pb.FindMissingBlobsRequest(), metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError, match="quota_requests") as caught:
            await stub.FindMissingBlobs(pb.FindMissingBlobsRequest(), metadata=metadata)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await stub.ListPasses(pb.ListPassesRequest(), metadata=metadata)
        assert tokens.asked == 5
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListPasses(pb.ListPassesRequest())
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    await server.stop(0)

"""A caller that sends its graph is not asked for it, even if it joins a request without one."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import torch

from lazyfx.shared import wire
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub


def encoded(number: int) -> wire.EncodedGraph:
    return wire.encode(torch.fx.symbolic_trace(lambda x: torch.relu(x) + number))


async def test_a_digest_only_request_does_not_fail_one_with_the_graph(server) -> None:
    channel = grpc.aio.insecure_channel(server.address)
    stub = GraphCompilerStub(channel)
    for number in range(30):
        graph = encoded(number)
        digest = graph_pb2.Digest(sha256=graph.digest, size_bytes=len(graph.body))
        bare = pb.CompileRequest(graph_digest=digest)
        whole = pb.CompileRequest(graph_digest=digest, graph=graph.message())
        first, second = await asyncio.gather(
            stub.Compile(bare, timeout=30), stub.Compile(whole, timeout=30), return_exceptions=True
        )
        assert isinstance(second, pb.CompileResponse), second
        assert isinstance(first, (pb.CompileResponse, grpc.aio.AioRpcError))
    await channel.close()

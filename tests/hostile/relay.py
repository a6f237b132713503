"""A relay between client and server, which may change what it forwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1.compiler_pb2_grpc import (
    GraphCompilerServicer,
    GraphCompilerStub,
    add_GraphCompilerServicer_to_server,
)

Edit = Callable[
    [pb.GetArtifactRequest, bytes, pb.ArtifactTrailer], tuple[bytes, pb.ArtifactTrailer]
]


class Relay(GraphCompilerServicer):
    """Passes calls on to a server; artifacts go through `edit`, and server info too."""

    def __init__(self, stub: GraphCompilerStub) -> None:
        self._stub = stub
        self.edit: Edit = lambda request, data, trailer: (data, trailer)
        self.edit_info: Callable[[pb.GetServerInfoResponse], None] = lambda info: None

    def Compile(self, request, context):  # type: ignore[no-untyped-def]
        return self._pass_on(context, lambda: self._stub.Compile(request, timeout=60))

    def GetServerInfo(self, request, context):  # type: ignore[no-untyped-def]
        info = self._pass_on(context, lambda: self._stub.GetServerInfo(request, timeout=60))
        self.edit_info(info)
        return info

    def GetArtifact(self, request, context):  # type: ignore[no-untyped-def]
        header, data, trailer = None, b"", None
        for part in self._stub.GetArtifact(request, timeout=60):
            header = part.header if part.HasField("header") else header
            trailer = part.trailer if part.HasField("trailer") else trailer
            data += part.chunk.data
        assert header is not None
        assert trailer is not None
        data, trailer = self.edit(request, data, trailer)
        header.size_bytes = len(data)
        yield pb.GetArtifactResponse(header=header)
        yield pb.GetArtifactResponse(chunk=pb.ArtifactChunk(data=data))
        yield pb.GetArtifactResponse(trailer=trailer)

    @staticmethod
    def _pass_on(context, call):  # type: ignore[no-untyped-def]
        try:
            return call()
        except grpc.RpcError as error:
            context.set_trailing_metadata(error.trailing_metadata())
            context.abort(error.code(), error.details())


@contextlib.contextmanager
def relayed(address: str, kind: type[Relay] = Relay) -> Iterator[tuple[Relay, str]]:
    """A relay of a kind in front of a server; yields it and its address."""
    with grpc.insecure_channel(address) as channel:
        relay = kind(GraphCompilerStub(channel))
        server = grpc.server(ThreadPoolExecutor(4))
        add_GraphCompilerServicer_to_server(relay, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield relay, f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()

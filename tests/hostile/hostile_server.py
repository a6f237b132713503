"""A fake server: honest by default, with a hook to change each of its answers."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_status import rpc_status

from lazyfx.shared import wire
from lazyfx.shared.grpc_status import rich_status
from lazyfx.shared.signing_keys import SIGNED_PREFIX, key_id
from lazyfx.shared.torch_lazy_class import LazyGraphModule
from lazyfx.shared.wire.presentation import provenance
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.jobs.rendering import render
from lazyfx_server.v1 import worker_pb2 as worker

Parts = Iterator[Any]


def _same(value: Any) -> Any:
    return value


@dataclass
class Lies:
    """What is changed on the way out; each hook gets the honest answer.

    Attributes:
        before_compile: Called with the request and the context before a compile is answered;
            it may abort the call, wait, or return an answer of its own.
        response: The answer to a compile.
        compiled: The graph that came out, before it is serialized.
        artifact: Bytes of an artifact, by kind; what comes out is signed.
        parts: The stream of an artifact.
        statement: What is signed of an artifact.
        signature: The signature.
        missing: The answer to FindMissingBlobs.
        batch: The stream of answers of a batch.
        self_description: Answers about the server.
    """

    before_compile: Callable[[pb.CompileRequest, Any], Any] = lambda request, context: None
    response: Callable[[pb.CompileResponse], Any] = _same
    compiled: Callable[[graph_pb2.CompiledGraph], Any] = _same
    artifact: Callable[[int, bytes], bytes] = lambda kind, data: data
    parts: Callable[[Parts], Parts] = _same
    statement: Callable[[pb.ArtifactStatement], pb.ArtifactStatement] = _same
    signature: Callable[[pb.ArtifactSignature], pb.ArtifactSignature] = _same
    missing: Callable[[pb.FindMissingBlobsResponse], Any] = _same
    batch: Callable[[Iterator[Any]], Iterator[Any]] = _same
    self_description: Callable[[Any], Any] = _same


@dataclass
class HostileServer:
    """One server. `lies` may be changed while it runs.

    Attributes:
        address: Where it listens.
        uploaded: Bytes of values that clients uploaded.
    """

    address: str = ""
    lies: Lies = field(default_factory=Lies)
    uploaded: int = 0
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    _bodies: dict[bytes, bytes] = field(default_factory=dict)
    _constants: dict[bytes, bytes] = field(default_factory=dict)

    def reset(self) -> None:
        """Become honest again, and forget everything."""
        self.lies, self.uploaded = Lies(), 0
        self._bodies.clear()

    # What the service promises, without changing the graph.

    def compile(self, request: pb.CompileRequest, context: Any) -> Any:
        answer = self.lies.before_compile(request, context)
        if answer is not None:
            return answer
        key = hashlib.sha256(request.graph_digest.sha256).digest()
        if request.HasField("graph"):
            self._bodies[key] = request.graph.body
        if key not in self._bodies:
            miss(context, f"blobs/{request.graph_digest.sha256.hex()}")
        nodes = sum(len(g.calls) for g in graph_pb2.GraphBody.FromString(self._bodies[key]).graphs)
        response = pb.CompileResponse(
            module_key=key,
            cache=pb.CacheResult(status=pb.CACHE_STATUS_MISS),
            report=pb.CompileReport(nodes_before=nodes, nodes_after=nodes),
        )
        return self.lies.response(response)

    def compile_batch(self, requests: Iterator[pb.CompileBatchRequest], context: Any) -> Any:
        def answers() -> Iterator[Any]:
            for each in requests:
                response = self.compile(each.request, context)
                yield pb.CompileBatchResponse(request_id=each.request_id, response=response)

        return self.lies.batch(answers())

    def get_artifact(self, request: pb.GetArtifactRequest, context: Any) -> Parts:
        data = self.lies.artifact(request.kind, self._render(request))
        digest = graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
        signature = self._sign(request, digest)
        header = pb.ArtifactHeader(kind=request.kind, size_bytes=len(data))
        parts = [pb.GetArtifactResponse(header=header)]
        if data:
            parts.append(pb.GetArtifactResponse(chunk=pb.ArtifactChunk(data=data)))
        trailer = pb.ArtifactTrailer(digest=digest, signature=signature)
        parts.append(pb.GetArtifactResponse(trailer=trailer))
        yield from self.lies.parts(iter(parts))

    def _render(self, request: pb.GetArtifactRequest) -> bytes:
        if request.kind == pb.ARTIFACT_KIND_CONSTANT:
            return self._constants.get(request.constant.sha256, b"")
        body = self._bodies[request.module_key]
        module = wire.decode(body, module_class=LazyGraphModule)
        encoded = wire.encode(module)
        compiled = graph_pb2.CompiledGraph(
            graph=encoded.message(), provenance=provenance(body, encoded)
        )
        compiled = self.lies.compiled(compiled)
        if request.kind == pb.ARTIFACT_KIND_GRAPH:
            data = compiled if isinstance(compiled, bytes) else compiled.SerializeToString()
            return bytes(data)
        job = worker.RenderJob(kind=request.kind, graph=compiled, purpose=request.purpose)
        if request.HasField("presentation"):
            job.presentation.CopyFrom(request.presentation)
        return render(job).data

    def _sign(
        self, request: pb.GetArtifactRequest, digest: graph_pb2.Digest
    ) -> pb.ArtifactSignature:
        statement = pb.ArtifactStatement(
            artifact=digest, module_key=request.module_key, kind=request.kind, builder="liar"
        )
        statement.created.FromSeconds(int(time.time()))
        statement.expires.FromSeconds(int(time.time()) + 3600)
        text = self.lies.statement(statement).SerializeToString()
        public = self.key.public_key().public_bytes_raw()
        signed = pb.ArtifactSignature(
            statement=text, signature=self.key.sign(SIGNED_PREFIX + text), key_id=key_id(public)
        )
        return self.lies.signature(signed)

    def find_missing(self, request: pb.FindMissingBlobsRequest, context: Any) -> Any:
        missing = pb.FindMissingBlobsResponse(missing=request.digests)
        missing.received.extend([0] * len(request.digests))
        return self.lies.missing(missing)

    def upload(self, requests: Iterator[pb.UploadBlobsRequest], context: Any) -> Any:
        self.uploaded += sum(len(each.data) for each in requests)
        return pb.UploadBlobsResponse()

    def info(self, request: Any, context: Any) -> Any:
        public = self.key.public_key().public_bytes_raw()
        key = pb.VerifyKey(key_id=key_id(public), public_key=public)
        return self.lies.self_description(
            pb.GetServerInfoResponse(verify_keys=[key], builder="liar")
        )

    def passes(self, request: Any, context: Any) -> Any:
        return self.lies.self_description(pb.ListPassesResponse())

    def stats(self, request: Any, context: Any) -> Any:
        return self.lies.self_description(pb.GetStatsResponse())


def miss(context: Any, *subjects: str) -> None:
    """End a call with what it lacks."""
    status = rich_status(grpc.StatusCode.FAILED_PRECONDITION, "send it", missing=subjects)
    context.abort_with_status(rpc_status.to_status(status))


def as_bytes(message: Any) -> bytes:
    """What is sent: messages serialized, bytes as they are."""
    return message if isinstance(message, bytes) else bytes(message.SerializeToString())


@contextlib.contextmanager
def hostile_server() -> Iterator[HostileServer]:
    """A server on a free loopback port."""
    liar = HostileServer()

    def unary(call: Any, kind: Any) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(call, kind.FromString, as_bytes)

    handlers = {
        "Compile": unary(liar.compile, pb.CompileRequest),
        "FindMissingBlobs": unary(liar.find_missing, pb.FindMissingBlobsRequest),
        "GetServerInfo": unary(liar.info, pb.GetServerInfoRequest),
        "ListPasses": unary(liar.passes, pb.ListPassesRequest),
        "GetStats": unary(liar.stats, pb.GetStatsRequest),
        "GetArtifact": grpc.unary_stream_rpc_method_handler(
            liar.get_artifact, pb.GetArtifactRequest.FromString, as_bytes
        ),
        "UploadBlobs": grpc.stream_unary_rpc_method_handler(
            liar.upload, pb.UploadBlobsRequest.FromString, as_bytes
        ),
        "CompileBatch": grpc.stream_stream_rpc_method_handler(
            liar.compile_batch, pb.CompileBatchRequest.FromString, as_bytes
        ),
    }
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_metadata_size", 2**20)])
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("lazyfx.v1.GraphCompiler", handlers)]
    )
    add_HealthServicer_to_server(HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    liar.address = f"127.0.0.1:{port}"
    try:
        yield liar
    finally:
        server.stop(None).wait(5)

"""Compile requests, read: whose, under which key; and the tokens that stand for known ones."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field

from cachetools import LRUCache

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.key import ModuleKey, environment_digest, values_digest
from lazyfx_server.compiling.limits.held_bytes import MemoryHold
from lazyfx_server.compiling.limits.request_checks import check_compile
from lazyfx_server.compiling.off_loop import compute, sha256
from lazyfx_server.compiling.pipelines import MAX_REMEMBERED, PipelineName, Pipelines
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import InvalidRequestError, MissingInputsError
from lazyfx_server.settings.limits import RequestLimits

# Requests by digest that are remembered as read and found to be well formed.
_KNOWN_REQUESTS = 4096
_TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class IncomingCompile:
    """A compile request as it came.

    Attributes:
        request: The message, without the body of its graph.
        body: The body of its graph, in the very bytes that came: whoever waits holds it once.
        size: Bytes of all of it.
        hold: Counts them while they are used.
        arrived: When it came, by `time.perf_counter`.
    """

    request: pb.CompileRequest
    body: memoryview
    size: int
    hold: MemoryHold
    arrived: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """What a request asks for; equal requests share one.

    Attributes:
        tenant: Whose it is.
        key: What its result depends on.
        digest: The key, 32 bytes.
        pipeline: The name of its passes.
        token: Stands for the request from now on; empty if it cannot have one.
    """

    tenant: Tenant
    key: ModuleKey
    digest: bytes
    pipeline: PipelineName
    token: bytes


class RequestReader:
    """Reads compile requests, and remembers those that hold no graph.

    Args:
        limits: Bounds of requests.
        pipelines: Reads pass lists.
    """

    def __init__(self, limits: RequestLimits, pipelines: Pipelines) -> None:
        self._limits = limits
        self._pipelines = pipelines
        self._known: LRUCache[bytes, ResolvedRequest] = LRUCache(_KNOWN_REQUESTS)

    async def read(self, incoming: IncomingCompile, tenant: Tenant) -> ResolvedRequest:
        """What a request asks for.

        Raises:
            InvalidRequestError: A field is wrong.
            MissingInputsError: The token stands for nothing.
        """
        request = incoming.request
        if request.request_token:
            return self._recall(request, tenant)
        if request.HasField("graph"):
            return await compute(incoming.size, self._resolve, incoming, tenant, b"")
        # Without a graph a request says little, and says the same when it is a hit again.
        token = await sha256(tenant.tag + request.SerializeToString())
        known: ResolvedRequest | None = self._known.get(token)
        if known is None:
            known = await compute(incoming.size, self._resolve, incoming, tenant, token)
            if known.token:
                self._known[token] = known
        return known

    def _recall(self, request: pb.CompileRequest, tenant: Tenant) -> ResolvedRequest:
        if len(request.ListFields()) != 1 or len(request.request_token) != _TOKEN_BYTES:
            raise InvalidRequestError.of_field(
                "request_token",
                f"must have {_TOKEN_BYTES} bytes, and replaces the whole request; "
                "leave every other field unset",
            )
        known: ResolvedRequest | None = self._known.get(request.request_token)
        if known is None or known.tenant != tenant:
            raise unknown_token(request.request_token)
        return known

    def _resolve(self, incoming: IncomingCompile, tenant: Tenant, token: bytes) -> ResolvedRequest:
        request, body = incoming.request, incoming.body
        check_compile(request, body, self._limits)
        graph_digest = request.graph_digest.sha256
        if request.HasField("graph") and graph_digest != hashlib.sha256(body).digest():
            raise InvalidRequestError.of_field(
                "graph_digest.sha256", "is not the SHA-256 of graph.body; compute it from the body"
            )
        pipeline = self._pipelines.resolve(
            request.passes, eager=request.eager, verify=request.verify
        )
        key = ModuleKey(
            tenant=tenant.tag,
            graph=graph_digest,
            pipeline=pipeline.fingerprint,
            values=values_digest(request.values),
            environment=environment_digest(),
        )
        if len(pipeline.spelling) > MAX_REMEMBERED:
            token = b""
        return ResolvedRequest(tenant, key, key.digest, pipeline, token)


def unknown_token(token: bytes) -> MissingInputsError:
    """What is told to whoever asks by a token that stands for nothing."""
    return MissingInputsError(
        "the token is unknown or has expired; send the full request",
        [f"requests/{token.hex()}"],
    )

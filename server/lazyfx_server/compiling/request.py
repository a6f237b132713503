"""Resolves compile requests to tenant and key, and issues tokens for known requests."""

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

# Maximum resolved requests without a graph in the cache.
_KNOWN_REQUESTS = 4096
TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class IncomingCompile:
    """A compile request as received.

    Attributes:
        request: The message, without the body of its graph.
        body: The body of its graph, in the received bytes, without a copy.
        size: Its total size in bytes.
        hold: Counts these bytes while they are in use.
        arrived: When it arrived, by `time.perf_counter`.
    """

    request: pb.CompileRequest
    body: memoryview
    size: int
    hold: MemoryHold
    arrived: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A resolved request; equal requests share one.

    Attributes:
        tenant: Its tenant.
        key: The key of its result.
        digest: The key, 32 bytes.
        pipeline: Its pipeline.
        token: Represents the request from now on; empty if it cannot have one.
    """

    tenant: Tenant
    key: ModuleKey
    digest: bytes
    pipeline: PipelineName
    token: bytes


class RequestReader:
    """Resolves compile requests, and caches those without a graph.

    Args:
        limits: Bounds on requests.
        pipelines: Resolves pass lists.
    """

    def __init__(self, limits: RequestLimits, pipelines: Pipelines) -> None:
        self._limits = limits
        self._pipelines = pipelines
        self._known: LRUCache[bytes, ResolvedRequest] = LRUCache(_KNOWN_REQUESTS)

    async def read(self, incoming: IncomingCompile, tenant: Tenant) -> ResolvedRequest:
        """What a request asks for.

        Raises:
            InvalidRequestError: A field is wrong.
            MissingInputsError: The token is unknown.
        """
        request = incoming.request
        if request.request_token:
            return self._recall(request, tenant)
        if request.HasField("graph"):
            return await compute(incoming.size, self._resolve, incoming, tenant, b"")
        # Requests without a graph are small, and are repeated for every hit.
        token = await sha256(tenant.tag + request.SerializeToString())
        known: ResolvedRequest | None = self._known.get(token)
        if known is None:
            known = await compute(incoming.size, self._resolve, incoming, tenant, token)
            if known.token:
                self._known[token] = known
        return known

    def _recall(self, request: pb.CompileRequest, tenant: Tenant) -> ResolvedRequest:
        if len(request.ListFields()) != 1 or len(request.request_token) != TOKEN_BYTES:
            raise InvalidRequestError.of_field(
                "request_token",
                f"must have {TOKEN_BYTES} bytes, and replaces the whole request; "
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
    """The error for an unknown token."""
    return MissingInputsError(
        "the token is unknown or has expired; send the full request",
        [f"requests/{token.hex()}"],
    )

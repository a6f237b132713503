"""Resolves compile requests to tenant and key, and issues tokens for known requests."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

from cachetools import LRUCache
from google.protobuf.message import DecodeError

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.flights.single_flight import Landing
from lazyfx_server.compiling.key import ModuleKey, environment_digest, values_digest
from lazyfx_server.compiling.limits.cost_estimates import JobKind
from lazyfx_server.compiling.limits.held_bytes import MemoryHold
from lazyfx_server.compiling.limits.request_checks import check_compile
from lazyfx_server.compiling.off_loop import compute, sha256
from lazyfx_server.compiling.pipelines import MAX_REMEMBERED, PipelineName, Pipelines
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import (
    DeadlineTooShortError,
    FailedPreconditionError,
    InvalidRequestError,
    LeaderTimedOutError,
    MissingInputsError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from lazyfx_server.settings.limits import RequestLimits
from lazyfx_server.store import Store

# Maximum resolved requests without a graph in the cache.
_KNOWN_REQUESTS = 4096
TOKEN_BYTES = 32
# Longer requests are not kept for other servers.
_MAX_KEPT_BYTES = 64 * 1024
_NO_BODY = memoryview(b"")
# Of a graph, in bytes, for the estimate of its compile.
_MAX_SIZE = 2**25

ENVIRONMENT_FIELD = "expected.environment"
PIPELINE_FIELD = "expected.pipeline"
"""The fields that are named to a server whose results would differ."""


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
        store: Where other servers find requests by their tokens; None if there are none.
    """

    def __init__(self, limits: RequestLimits, pipelines: Pipelines, store: Store | None) -> None:
        self._limits = limits
        self._pipelines = pipelines
        self._store = store
        self._kept: LRUCache[bytes, bool] = LRUCache(_KNOWN_REQUESTS)
        self._known: LRUCache[bytes, ResolvedRequest] = LRUCache(_KNOWN_REQUESTS)

    def known(self, token: bytes, tenant: Tenant) -> ResolvedRequest | None:
        """The request that a token stands for, if this tenant has made it to this server."""
        known: ResolvedRequest | None = self._known.get(token)
        return known if known is not None and known.tenant == tenant else None

    async def read(self, incoming: IncomingCompile, tenant: Tenant) -> ResolvedRequest:
        """What a request asks for.

        Raises:
            InvalidRequestError: A field is wrong.
            MissingInputsError: The token is unknown.
        """
        request = incoming.request
        if request.request_token:
            return await self._recall(incoming, tenant)
        if request.HasField("graph"):
            size, body = incoming.size, incoming.body
            return await compute(size, self._resolve, request, body, tenant, b"")
        return await self.read_named(request, tenant, incoming.size)

    async def read_named(
        self, request: pb.CompileRequest, tenant: Tenant, size: int
    ) -> ResolvedRequest:
        """What a request asks for that names its graph but does not contain it.

        Args:
            request: The request.
            tenant: Its tenant.
            size: Its total size in bytes.

        Raises:
            InvalidRequestError: A field is wrong.
        """
        # Such requests are small, and are repeated for every hit.
        token = await sha256(tenant.tag + request.SerializeToString())
        known: ResolvedRequest | None = self._known.get(token)
        if known is None:
            known = await compute(size, self._resolve, request, _NO_BODY, tenant, token)
            if known.token:
                self._known[token] = known
        return known

    async def keep(self, incoming: IncomingCompile, resolved: ResolvedRequest) -> None:
        """Let other servers know a request by its token, which is being given away."""
        token = resolved.token
        if self._store is None or not token or token in self._kept:
            return
        self._kept[token] = True
        request = incoming.request.SerializeToString()
        if len(request) <= _MAX_KEPT_BYTES:
            await self._store.put(resolved.tenant.request(token), request)

    async def _recall(self, incoming: IncomingCompile, tenant: Tenant) -> ResolvedRequest:
        request = incoming.request
        if len(request.ListFields()) != 1 or len(request.request_token) != TOKEN_BYTES:
            raise InvalidRequestError.of_field(
                "request_token",
                f"must have {TOKEN_BYTES} bytes, and replaces the whole request; "
                "leave every other field unset",
            )
        known: ResolvedRequest | None = self._known.get(request.request_token)
        if known is None and self._store is not None:
            known = await self._find_kept(self._store, request.request_token, tenant)
        if known is None or known.tenant != tenant:
            raise unknown_token(request.request_token)
        return known

    async def _find_kept(
        self, store: Store, token: bytes, tenant: Tenant
    ) -> ResolvedRequest | None:
        """The request that another server has given this token to."""
        stored = await store.get(tenant.request(token))
        # The token is a digest of the request, so that nothing else is accepted for it.
        if stored is None or await sha256(tenant.tag + stored) != token:
            return None
        try:
            found = pb.CompileRequest.FromString(stored)
            known = await compute(len(stored), self._resolve, found, _NO_BODY, tenant, token)
        except (DecodeError, InvalidRequestError):
            return None  # that server knows passes or takes sizes that this one does not
        if known.token:
            self._known[token] = known
            self._kept[token] = True
        return known if known.token else None

    def _resolve(
        self, request: pb.CompileRequest, body: memoryview, tenant: Tenant, token: bytes
    ) -> ResolvedRequest:
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
        if request.HasField("expected"):
            _check_expected(request.expected, key)
        if len(pipeline.spelling) > MAX_REMEMBERED:
            token = b""
        return ResolvedRequest(tenant, key, key.digest, pipeline, token)


def _check_expected(expected: pb.Fingerprints, key: ModuleKey) -> None:
    """Check that another server, which forwards the request, would compile the same here.

    Raises:
        FailedPreconditionError: It would not.
    """
    if expected.environment != key.environment:
        raise FailedPreconditionError.of_field(
            ENVIRONMENT_FIELD,
            "the servers have other versions of lazyfx, torch or Python, or other added targets; "
            "install the same on both",
        )
    if expected.pipeline != key.pipeline:
        raise FailedPreconditionError.of_field(
            PIPELINE_FIELD,
            "the servers have other versions of a requested pass; install the same plugins on both",
        )


def unknown_token(token: bytes) -> MissingInputsError:
    """The error for an unknown token."""
    return MissingInputsError(
        "the token is unknown or has expired; send the full request",
        [f"requests/{token.hex()}"],
    )


def kind_of_job(incoming: IncomingCompile, key: ModuleKey) -> JobKind:
    """What the duration of a compile depends on."""
    same, family = key.tenant + key.graph + key.pipeline, key.tenant + key.pipeline
    if incoming.body:
        return JobKind(same, family, len(incoming.body))
    # What the caller says; it is charged for what the job really takes.
    claimed = min(incoming.request.graph_digest.size_bytes, _MAX_SIZE)
    return JobKind(same, family, claimed, is_claimed=True)


def fares_better_alone(request: pb.CompileRequest, landing: Landing[Any]) -> bool:
    """Whether a request should retry in a flight of its own instead of sharing this landing.

    If blobs or the request were missing, the leader had only a token or a digest. A request that
    contains more leads the next flight; one that does not would fail the same way. A token that
    resolved to another request needs its own flight. If the deadline of the leader was too short,
    that of this request may not be.
    """
    error = landing.error
    if error is None:
        return request.skip_cache_lookup and not landing.result().made_here
    if is_about_leader(error):
        return True
    if not isinstance(error, MissingInputsError):
        return False
    asked_for_request = error.subjects[0].startswith("requests/")
    return request.HasField("graph") or bool(request.request_token) != asked_for_request


def is_about_leader(error: BaseException | None) -> bool:
    """Whether an error concerns only the caller that began a flight, and not those who joined.

    Its deadline was too short, or the upstream refused it.
    """
    own = (DeadlineTooShortError, LeaderTimedOutError, PermissionDeniedError, UnauthenticatedError)
    return isinstance(error, own)

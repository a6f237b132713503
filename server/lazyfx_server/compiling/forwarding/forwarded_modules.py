"""Modules that the upstream compiles for this server's callers, and what is stored of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.blobs.content_checks import stored_content
from lazyfx_server.compiling.catalog import Catalog, CompiledModule
from lazyfx_server.compiling.flights.single_flight import Flight
from lazyfx_server.compiling.forwarding.forwarding import Forwarding
from lazyfx_server.compiling.forwarding.uploading_blobs import Buffer
from lazyfx_server.compiling.forwarding.upstream_keys import has_expired
from lazyfx_server.compiling.miss_reasons import Explainer, Miss
from lazyfx_server.compiling.pipelines import Pipelines
from lazyfx_server.compiling.request import IncomingCompile, ResolvedRequest
from lazyfx_server.store import Store
from lazyfx_server.telemetry import LookupMade, Observer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ForwardedModule:
    """A module of the upstream, and the reason for the miss unless it was a hit there."""

    module: CompiledModule
    miss: Miss | None


class ForwardedModules:
    """Asks the upstream for modules, and stores them here.

    Args:
        forwarding: Asks it.
        catalog: Compiled modules by key.
        store: Graph bodies and tensor values by digest.
        pipelines: Resolves pass lists.
        explainer: Remembers what was compiled.
        observer: Receives events.
    """

    def __init__(
        self,
        forwarding: Forwarding,
        catalog: Catalog,
        store: Store,
        pipelines: Pipelines,
        explainer: Explainer,
        observer: Observer,
    ) -> None:
        self._forwarding = forwarding
        self._catalog = catalog
        self._store = store
        self._pipelines = pipelines
        self._explainer = explainer
        self._observer = observer

    def is_outdated(self, module: CompiledModule) -> bool:
        """Whether what the upstream signed of a module has expired, and it can sign it again."""
        if not self._forwarding.in_use or not module.record.HasField("upstream"):
            return False
        return has_expired(module.record.upstream.graph)

    async def make(
        self, incoming: IncomingCompile, resolved: ResolvedRequest, miss: Miss, flight: Flight[Any]
    ) -> ForwardedModule | None:
        """The module as the upstream has or makes it; None if it cannot serve it.

        Args:
            incoming: A request whose blobs are all in the store.
            resolved: What it asks for.
            miss: Why it is a miss here.
            flight: Notified when the upstream is asked.

        Raises:
            RequestError: The upstream refuses the caller.
        """
        tenant, key = resolved.tenant, resolved.key

        async def read(sha256: bytes) -> Buffer | None:
            return await stored_content(self._store, tenant.blob(sha256), sha256)

        flight.mark_running()
        passes = self._pipelines.expand(incoming.request.passes)
        answer = await self._forwarding.compile(
            resolved, incoming.request, passes, incoming.body, read
        )
        if answer is None:
            return None
        flight.mark_finishing()
        other = await self._catalog.find(tenant, answer.origin.module_key)
        if isinstance(other, CompiledModule) and other.own_digest != resolved.digest:
            _log.error("the upstream answered with the key of another module; not using it")
            return None
        if incoming.request.HasField("graph"):
            await self._store.put(tenant.blob(key.graph), bytes(incoming.body))
        module = await self._catalog.add(tenant, resolved.digest, key, answer.result, answer.origin)
        await self._explainer.remember(key)
        if answer.cache.status == pb.CACHE_STATUS_HIT:
            return ForwardedModule(module, None)
        reason = pb.MissReason.Name(miss.reason)
        self._observer.observe(LookupMade("miss", reason, tenant.name))
        return ForwardedModule(module, miss)

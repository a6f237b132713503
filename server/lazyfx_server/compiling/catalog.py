"""The compiled modules of this server, by key.

Records are in the store; recent ones are also kept here, parsed and ready to send, because a hit
must be just a dictionary lookup.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field

from cachetools import LRUCache

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.key import ModuleKey, environment_digest
from lazyfx_server.compiling.miss_reasons import Miss
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.store import Store
from lazyfx_server.v1.worker_pb2 import CompileResult, ModuleRecord, UpstreamModule

# How long a record in memory is used before the store is asked again whether its blobs still exist
# (which also marks them as used).
_FRESH_SECONDS = 30.0
# Maximum bytes of records in memory.
_MAX_RECORD_BYTES = 64 * 2**20
# Overhead of a record in addition to its bytes.
_RECORD_OVERHEAD = 2048


@dataclass(slots=True)
class CompiledModule:
    """A compiled module: its tenant, key, record, and prepared response for hits.

    Attributes:
        tenant: Its tenant.
        key: By which callers know it: the upstream's key if that compiled it.
        record: What the store has of it.
        rendered: Kinds of its artifacts that exist.
        checked: When the store was last asked for it, by `time.monotonic`.
    """

    tenant: Tenant
    key: bytes
    record: ModuleRecord
    rendered: set[int] = field(default_factory=set)
    checked: float = 0.0
    _hit: bytes | None = None

    @property
    def own_digest(self) -> bytes:
        """The digest of this server's own key; differs from `key` if the upstream compiled it."""
        record = self.record
        if not record.HasField("upstream"):
            return self.key
        return ModuleKey(
            self.tenant.tag,
            record.graph_digest,
            record.pipeline_fingerprint,
            record.values_digest,
            record.environment_digest,
        ).digest

    @property
    def places(self) -> tuple[str, ...]:
        """Store keys of the record: it is found by either key."""
        if not self.record.HasField("upstream"):
            return (self.tenant.module(self.key),)
        return tuple({self.tenant.module(key): None for key in (self.own_digest, self.key)})

    @property
    def report(self) -> pb.CompileReport:
        """What the compile did, including recompiles that later requests caused."""
        return self.record.report

    @property
    def graph_blob(self) -> str:
        """Store key of the serialized CompiledGraph."""
        return self.tenant.blob(self.record.compiled_graph.sha256)

    @property
    def parts(self) -> list[str]:
        """Store keys of the module: its record, its graph and its constants."""
        constants = [self.tenant.blob(constant.sha256) for constant in self.record.constants]
        return [*self.places, self.graph_blob, *constants]

    @property
    def hit(self) -> bytes:
        """The response for a hit, serialized once."""
        if self._hit is None:
            self._hit = self.answer(pb.CACHE_STATUS_HIT, None)
        return self._hit

    def hit_with(self, token: bytes) -> bytes:
        """The response for a hit, with the request's token if it has one."""
        # Messages are merged by joining their bytes.
        return pb.CompileResponse(request_token=token).SerializeToString() + self.hit

    def answer(self, status: pb.CacheStatus.ValueType, miss: Miss | None) -> bytes:
        """Build a response about this module."""
        cache = pb.CacheResult(status=status)
        if miss:
            cache.miss_reason = miss.reason
            cache.explanation = miss.explanation
        response = pb.CompileResponse(
            module_key=self.key,
            cache=cache,
            report=self.report,
            rendered=sorted(self.rendered),  # type: ignore[arg-type]
            constants=self.record.constants,
        )
        return response.SerializeToString()

    def record_rendering(self, kind: int) -> None:
        """Record that an artifact of this kind exists."""
        if kind not in self.rendered:
            self.rendered.add(kind)
            self._hit = None

    def record_recompiles(self, performed: int, seconds: float) -> None:
        """Add recompiles that rendering performed, and their seconds."""
        recompiles = self.record.report.recompiles
        recompiles.performed += performed
        recompiles.saved = max(0, recompiles.requested - recompiles.performed)
        self.record.report.performed_seconds += seconds
        self.record.report.stale = False
        for row in self.record.report.modules:
            row.stale = False
        self._hit = None


@dataclass(frozen=True, slots=True)
class NotFound:
    """No module has the key; `damaged` if there was one that could not be read."""

    damaged: bool = False


class Catalog:
    """Finds and keeps compiled modules.

    Args:
        store: Records ("modules/") and compiled graphs and constants ("blobs/").
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recent: LRUCache[str, CompiledModule] = LRUCache(_MAX_RECORD_BYTES, getsizeof=_size)
        # Store keys of corrupt entries: the store has already removed them when it answers, but the
        # caller is told why.
        self._damaged: LRUCache[str, bool] = LRUCache(4096)

    def record_damage(self, store_key: str) -> None:
        """Record that the store has quarantined an entry."""
        self._damaged[store_key] = True

    def recent(self, tenant: Tenant, key: bytes) -> CompiledModule | None:
        """A tenant's module, if it is in memory and was recently confirmed by the store."""
        module: CompiledModule | None = self._recent.get(tenant.module(key))
        if module is not None and time.monotonic() - module.checked < _FRESH_SECONDS:
            return module
        return None

    def in_memory(self, tenant: Tenant, key: bytes) -> CompiledModule | None:
        """A tenant's module, if it is in memory, however long ago the store was asked for it."""
        module: CompiledModule | None = self._recent.get(tenant.module(key))
        return module

    async def find(self, tenant: Tenant, key: bytes) -> CompiledModule | NotFound:
        """Look up a tenant's module by the digest of its key, in memory and in the store."""
        if (module := self.recent(tenant, key)) is not None:
            return module
        now = time.monotonic()
        found = await self._find_stored(tenant, key)
        # It may have been added during the read.
        if (module := self.recent(tenant, key)) is not None:
            return module
        place = tenant.module(key)
        if isinstance(found, NotFound):
            self._recent.pop(place, None)
            return found
        found.checked = now
        for place in found.places:
            self._recent[place] = found
        return found

    async def _find_stored(self, tenant: Tenant, key: bytes) -> CompiledModule | NotFound:
        place = tenant.module(key)
        module: CompiledModule | None = self._recent.get(place)
        stored = await self._store.get(place)
        if stored is None:
            return NotFound(damaged=place in self._damaged)
        if module is None:
            record = tenant.seal.open(place, stored)
            if record is None:
                return NotFound(damaged=True)
            module = _read(tenant, key, ModuleRecord.FromString(record))
            if module.record.environment_digest != environment_digest():
                # Of a server with other versions, which names it to callers of its own.
                return NotFound()
        if await self._store.get(module.graph_blob) is None:
            return NotFound(damaged=module.graph_blob in self._damaged)
        return module

    async def add(
        self,
        tenant: Tenant,
        digest: bytes,
        key: ModuleKey,
        result: CompileResult,
        upstream: UpstreamModule | None = None,
    ) -> CompiledModule:
        """Store the result of a compile, and return it as a module.

        Args:
            tenant: Its tenant.
            digest: The digest of the key.
            key: Its key.
            result: The result.
            upstream: Set if the upstream compiled it.
        """
        for constant in result.constants:
            await self._store.put(tenant.blob(constant.digest.sha256), constant.data)
        graph = result.graph.SerializeToString(deterministic=True)
        content = graph_pb2.Digest(sha256=hashlib.sha256(graph).digest(), size_bytes=len(graph))
        record = ModuleRecord(
            graph_digest=key.graph,
            pipeline_fingerprint=key.pipeline,
            values_digest=key.values,
            environment_digest=key.environment,
            compiled_graph=content,
            report=result.report,
            constants=[constant.digest for constant in result.constants],
            tenant=key.tenant,
            upstream=upstream,
        )
        module = _read(tenant, digest, record)
        module.checked = time.monotonic()
        await self._store.put(module.graph_blob, graph)
        for place in (module.graph_blob, *module.places):
            self._damaged.pop(place, None)
        for place in module.places:
            self._recent[place] = module
        await self.save(module)
        return module

    async def save(self, module: CompiledModule) -> None:
        """Write a module's record to the store."""
        record = module.record.SerializeToString()
        for place in module.places:
            await self._store.put(place, module.tenant.seal.close(place, record))

    def forget(self, module: CompiledModule) -> None:
        """Drop a module whose blobs are missing; the next request for it is a miss."""
        for place in module.places:
            if self._recent.get(place) is module:
                self._recent.pop(place, None)

    async def remove(self, module: CompiledModule) -> None:
        """Remove a module that can no longer be served; the next request for it is a miss."""
        self.forget(module)
        for place in module.places:
            await self._store.delete(place)


def _read(tenant: Tenant, key: bytes, record: ModuleRecord) -> CompiledModule:
    """The module of a record that was found by either of its keys."""
    return CompiledModule(tenant, record.upstream.module_key or key, record)


def _size(module: CompiledModule) -> int:
    # Twice: the response for a hit contains the report again.
    return 2 * module.record.ByteSize() + _RECORD_OVERHEAD

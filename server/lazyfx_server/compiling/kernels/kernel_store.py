"""Compiled kernels in the store, under keys that the server computes and with a MAC.

A key covers everything that the output of a compile depends on (`build_keys`). Whoever can write to
the store can remove an entry but not replace it: the MAC covers the place and the output, and its
key is derived from the tenants' secret, so that servers that share a store accept each other's
entries.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from lazyfx_server.compiling.tenants import Seal
from lazyfx_server.store import Store
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)

# Libraries of kernels have some 50 KB; objects of packages for serving may hold constants.
MAX_KEPT_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class KernelPlace:
    """Where a kernel is stored.

    Attributes:
        key: The store key.
        seal: Seals and opens it: the seal of the kernels of all tenants together, or of one.
    """

    key: str
    seal: Seal


class KernelStore:
    """Finds and stores compiled kernels.

    Args:
        store: Holds them.
        secret: The tenants' secret, from which the keys of the MACs are derived.
        on_forged: Called for each entry that no server with this secret has made; it is removed.
    """

    def __init__(self, store: Store, secret: bytes, on_forged: Callable[[], None]) -> None:
        self._store = store
        self._seal = Seal.derived(secret, b"kernels")
        self._on_forged = on_forged

    def place(self, key: bytes, scope: bytes) -> KernelPlace:
        """Where the output of a build is stored.

        Args:
            key: `build_keys.library_key` of the build.
            scope: The tag of the tenant whose jobs may use it; empty for those of all tenants.
        """
        seal = self._seal.of(scope)
        name = hmac.digest(seal.key, b"name\0" + key, "sha256").hex()
        return KernelPlace(f"kernels/{name}", seal)

    async def find(self, place: KernelPlace) -> worker.KernelRecord | None:
        """The kernel in a place, if a server with this secret has put it there."""
        stored = await self._store.get(place.key)
        if stored is None:
            return None
        record = place.seal.open(place.key, stored)
        if record is not None:
            try:
                return worker.KernelRecord.FromString(record)
            except DecodeError:  # of another version
                return None
        _log.warning("a kernel in the store was not made by this server; compiling it again")
        self._on_forged()
        await self._store.delete(place.key)
        return None

    async def add(self, place: KernelPlace, record: worker.KernelRecord) -> None:
        """Store a kernel, unless it is very large."""
        if len(record.output) <= MAX_KEPT_BYTES:
            sealed = place.seal.close(place.key, record.SerializeToString())
            await self._store.put(place.key, sealed)

"""Stores of results: bytes under content-addressed keys. They know nothing about the bytes."""

from __future__ import annotations

from pathlib import Path

from lazyfx_server.store.circuit_breaker import SLOWEST_BYTES
from lazyfx_server.store.contract import (
    InvalidKeyError,
    OnCorrupt,
    OnError,
    OnRecovered,
    Operation,
    SkippedError,
    Store,
    StoreError,
    StoreHooks,
    StoreStats,
    UnreachableError,
    checked_key,
)
from lazyfx_server.store.disk_store import DiskStore
from lazyfx_server.store.leases import Lease, Leases
from lazyfx_server.store.memory_store import MemoryStore
from lazyfx_server.store.opening_shared import (
    SharedStoreError,
    SharedStoreSettings,
    open_shared_store,
)
from lazyfx_server.store.shared_identity import OtherIdentityError, SharedIdentity
from lazyfx_server.store.shared_store import SharedStore
from lazyfx_server.store.tiered_store import TieredStore
from lazyfx_server.store.verified_store import VerifiedStore

__all__ = [
    "SLOWEST_BYTES",
    "DiskStore",
    "InvalidKeyError",
    "Lease",
    "Leases",
    "MemoryStore",
    "OnCorrupt",
    "OnError",
    "OnRecovered",
    "Operation",
    "OtherIdentityError",
    "SharedIdentity",
    "SharedStore",
    "SharedStoreError",
    "SharedStoreSettings",
    "SkippedError",
    "Store",
    "StoreError",
    "StoreHooks",
    "StoreStats",
    "TieredStore",
    "UnreachableError",
    "VerifiedStore",
    "checked_key",
    "open_shared_store",
    "open_store",
]


def open_store(
    root: Path | None,
    *,
    memory_bytes: int,
    disk_bytes: int,
    shared: Store | None = None,
    on_error: OnError | None = None,
    on_recovered: OnRecovered | None = None,
    on_corrupt: OnCorrupt | None = None,
) -> MemoryStore | TieredStore:
    """Open the store of a server: memory, over a folder if one is given.

    Blocks during the scan of the folder.

    Args:
        root: The folder, or None to keep values in memory only.
        memory_bytes: Bound on memory. With a folder, which holds larger entries, one entry may take
            a quarter of it.
        disk_bytes: Bound on the folder.
        shared: What several servers share; takes the place of the folder.
        on_error: Called for each failed operation, which was answered as a miss.
        on_recovered: Called for each success of an operation that has failed before.
        on_corrupt: Called for each corrupt entry that was quarantined.

    Returns:
        A store that never raises StoreError.

    Raises:
        StoreError: The folder cannot be used.
    """
    if shared is not None:
        return TieredStore(
            MemoryStore(memory_bytes, max_entry_bytes=memory_bytes // 4),
            shared,
            on_error=on_error,
            on_recovered=on_recovered,
            waits_when_full=False,
        )
    if root is None:
        return MemoryStore(memory_bytes)
    return TieredStore(
        MemoryStore(memory_bytes, max_entry_bytes=memory_bytes // 4),
        VerifiedStore(DiskStore(root, disk_bytes), on_corrupt=on_corrupt),
        on_error=on_error,
        on_recovered=on_recovered,
    )

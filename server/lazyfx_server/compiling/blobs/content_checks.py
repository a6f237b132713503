"""Verifies stored bytes against their digest, since the store is not trusted."""

from __future__ import annotations

import asyncio
import hashlib

from lazyfx_server.store import Store

# Hashing this much takes about a millisecond, which is acceptable on the event loop.
_ON_LOOP_BYTES = 2**20


async def stored_content(store: Store, place: str, sha256: bytes) -> bytes | None:
    """The bytes under a key, or None if there are none or their digest differs.

    Args:
        store: The store.
        place: The key.
        sha256: The expected digest.
    """
    data = await store.get(place)
    if data is None:
        return None
    if len(data) <= _ON_LOOP_BYTES:
        found = hashlib.sha256(data).digest()
    else:
        found = (await asyncio.to_thread(hashlib.sha256, data)).digest()
    if found == sha256:
        return data
    await store.delete(place)
    return None

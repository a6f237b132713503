"""Whether stored bytes are those that a digest names: the store is not trusted to say so."""

from __future__ import annotations

import asyncio
import hashlib

from lazyfx_server.store import Store

# Hashing so much takes about a millisecond, for which the event loop can wait.
_ON_LOOP_BYTES = 2**20


async def stored_content(store: Store, place: str, sha256: bytes) -> bytes | None:
    """The bytes under a key, or None when there are none or they have another digest.

    Args:
        store: Where to look.
        place: The key.
        sha256: What the bytes must hash to.
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

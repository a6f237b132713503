"""Verifies stored bytes against their digest, since the store is not trusted."""

from __future__ import annotations

from lazyfx_server.compiling import off_loop
from lazyfx_server.store import Store


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
    if await off_loop.sha256(data) == sha256:
        return data
    await store.delete(place)
    return None

"""A wrapper around a store that detects corrupt values and never returns them.

::

    8 bytes magic | 8 bytes length of the value | 32 bytes SHA-256 of key and value | value

A torn, truncated or altered value, or one stored under another key, is quarantined, reported and
answered as a miss.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import Iterable, Mapping
from typing import Final

from lazyfx_server.store.contract import (
    OnCorrupt,
    QuarantiningStore,
    StoreStats,
    checked_key,
)

_HEADER: Final = struct.Struct("<8sQ32s")
_MAGIC: Final = b"lazyfx\x001"
_LARGE: Final = 1 << 18
"""From this size on, hashing (0.5 ms per MiB) runs in a thread."""

ENVELOPE_BYTES: Final = _HEADER.size


class CorruptEntryError(ValueError):
    """The bytes are not an intact envelope."""


def seal(key: str, value: bytes) -> bytes:
    """Wrap a value in an envelope that `unseal` can check."""
    return _HEADER.pack(_MAGIC, len(value), _digest(key, value)) + value


def unseal(key: str, sealed: bytes) -> bytes:
    """The value in an envelope.

    Raises:
        CorruptEntryError: The envelope is damaged, or was sealed for another key.
    """
    if len(sealed) < ENVELOPE_BYTES:
        raise CorruptEntryError(f"{len(sealed)} bytes are too few for an envelope")
    magic, length, digest = _HEADER.unpack_from(sealed)
    if magic != _MAGIC:
        raise CorruptEntryError("wrong magic")
    if length != len(sealed) - ENVELOPE_BYTES:
        raise CorruptEntryError(f"{len(sealed) - ENVELOPE_BYTES} bytes instead of {length}")
    value = sealed[ENVELOPE_BYTES:]
    if digest != _digest(key, value):
        raise CorruptEntryError("wrong SHA-256")
    return value


def _digest(key: str, value: bytes) -> bytes:
    digest = hashlib.sha256(key.encode("ascii"))
    digest.update(value)
    return digest.digest()


class VerifiedStore:
    """Checks the values of another store.

    Args:
        inner: Holds the envelopes.
        on_corrupt: Called for each corrupt entry, before the miss is answered.
    """

    def __init__(self, inner: QuarantiningStore, *, on_corrupt: OnCorrupt | None = None) -> None:
        self._inner = inner
        self._on_corrupt = on_corrupt

    @property
    def name(self) -> str:
        """The inner store's name."""
        return self._inner.name

    async def get(self, key: str) -> bytes | None:
        """See `Store.get`."""
        sealed = await self._inner.get(key)
        if sealed is None:
            return None
        try:
            if len(sealed) < _LARGE:
                return unseal(key, sealed)
            return await asyncio.to_thread(unseal, key, sealed)
        except CorruptEntryError:
            if self._on_corrupt is not None:
                self._on_corrupt(self.name, key)
            await self._inner.quarantine(key)
            return None

    async def put(self, key: str, value: bytes) -> None:
        """See `Store.put`."""
        checked_key(key)
        if len(value) < _LARGE:
            sealed = seal(key, value)
        else:
            sealed = await asyncio.to_thread(seal, key, value)
        await self._inner.put(key, sealed)

    async def contains(self, keys: Iterable[str]) -> set[str]:
        """See `Store.contains`. Does not look at the values."""
        return await self._inner.contains(keys)

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        await self._inner.delete(key)

    def stats(self) -> StoreStats:
        """See `Store.stats`."""
        return self._inner.stats()

    def tiers(self) -> Mapping[str, StoreStats]:
        """See `Store.tiers`."""
        return self._inner.tiers()

    async def close(self) -> None:
        """Closes the inner store."""
        await self._inner.close()

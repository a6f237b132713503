"""A wrapper around a store that detects corrupt values and never returns them.

::

    8 bytes magic | 8 bytes length of the value | 32 bytes SHA-256 of key and value | value

A torn, truncated or altered value, or one stored under another key, is quarantined, reported and
answered as a miss. With a secret, HMAC-SHA-256 takes the place of SHA-256: then whoever can write
to the store cannot make an entry that is accepted.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
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
_MAGIC_WITH_SECRET: Final = b"lazyfx\x00m"
_LARGE: Final = 1 << 18
"""From this size on, hashing (0.5 ms per MiB) runs in a thread."""

ENVELOPE_BYTES: Final = _HEADER.size


class CorruptEntryError(ValueError):
    """The bytes are not an intact envelope."""


def seal(key: str, value: bytes, secret: bytes = b"") -> bytes:
    """Wrap a value in an envelope that `unseal` can check."""
    return _HEADER.pack(_magic(secret), len(value), _digest(key, value, secret)) + value


def unseal(key: str, sealed: bytes, secret: bytes = b"") -> bytes:
    """The value in an envelope.

    Raises:
        CorruptEntryError: The envelope is damaged, or was sealed for another key or secret.
    """
    if len(sealed) < ENVELOPE_BYTES:
        raise CorruptEntryError(f"{len(sealed)} bytes are too few for an envelope")
    magic, length, digest = _HEADER.unpack_from(sealed)
    if magic != _magic(secret):
        raise CorruptEntryError("wrong magic")
    if length != len(sealed) - ENVELOPE_BYTES:
        raise CorruptEntryError(f"{len(sealed) - ENVELOPE_BYTES} bytes instead of {length}")
    value = sealed[ENVELOPE_BYTES:]
    if not hmac.compare_digest(digest, _digest(key, value, secret)):
        raise CorruptEntryError("wrong digest")
    return value


def _magic(secret: bytes) -> bytes:
    return _MAGIC_WITH_SECRET if secret else _MAGIC


def _digest(key: str, value: bytes, secret: bytes) -> bytes:
    digest = hmac.new(secret, digestmod="sha256") if secret else hashlib.sha256()
    digest.update(key.encode("ascii"))  # a space, a slash and 64 digits: where it ends is known
    digest.update(value)
    return digest.digest()


class VerifiedStore:
    """Checks the values of another store.

    Args:
        inner: Holds the envelopes.
        secret: Authenticates entries; without one they are only checked for damage.
        on_corrupt: Called for each corrupt entry, before the miss is answered.
    """

    def __init__(
        self,
        inner: QuarantiningStore,
        *,
        secret: bytes = b"",
        on_corrupt: OnCorrupt | None = None,
    ) -> None:
        self._inner = inner
        self._secret = secret
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
                return unseal(key, sealed, self._secret)
            return await asyncio.to_thread(unseal, key, sealed, self._secret)
        except CorruptEntryError:
            if self._on_corrupt is not None:
                self._on_corrupt(self.name, key)
            await self._inner.quarantine(key)
            return None

    async def put(self, key: str, value: bytes) -> None:
        """See `Store.put`."""
        await self._inner.put(key, await self._sealed(key, value))

    async def put_if_absent(self, key: str, value: bytes) -> bool:
        """See `Store.put_if_absent`. A damaged entry is one, too, until it is read."""
        return await self._inner.put_if_absent(key, await self._sealed(key, value))

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

    async def _sealed(self, key: str, value: bytes) -> bytes:
        checked_key(key)
        if len(value) < _LARGE:
            return seal(key, value, self._secret)
        return await asyncio.to_thread(seal, key, value, self._secret)

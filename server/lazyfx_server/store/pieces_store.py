"""Large entries in a store for small ones: in pieces, which a header lists.

Redis answers small reads at once and large ones late, and while it sends a large one, all others
wait. So an entry is split into pieces of `PIECE_BYTES`, of which few are read at a time. Pieces are
named after the content of the whole entry, so that two servers that write one entry at once do not
mix theirs. What a server has written or read is in its folder as well, if it has one.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import Iterable, Mapping
from typing import Final

from lazyfx_server.store.contract import OnError, OnRecovered, Store, StoreStats, checked_key
from lazyfx_server.store.reported_failures import ReportedFailures

PIECE_BYTES: Final = 256 << 10
MAX_PIECED_BYTES: Final = 64 << 20
"""Longer entries are only in the folder."""

_HEADER: Final = struct.Struct("<Q32s")
_AT_ONCE: Final = 4


class PiecesStore:
    """Keeps large entries in pieces.

    Args:
        inner: Holds headers and pieces; it is trusted to return what was put.
        folder: Holds whole entries on this machine; None for none.
        on_error: Told of each operation of the folder that failed.
        on_recovered: Told of each success of one that has failed before.
    """

    def __init__(
        self,
        inner: Store,
        folder: Store | None,
        *,
        on_error: OnError | None = None,
        on_recovered: OnRecovered | None = None,
    ) -> None:
        self._inner = inner
        self._folder = folder
        self._failures = ReportedFailures(on_error, on_recovered)

    @property
    def name(self) -> str:
        """The name of the inner store."""
        return self._inner.name

    async def get(self, key: str) -> bytes | None:
        """See `Store.get`."""
        checked_key(key)
        if self._folder is not None:
            value = await self._failures.result(self._folder, "get", key, self._folder.get(key))
            if value is not None:
                return value
        header = await self._header(key)
        if header is None:
            return None
        value = await self._joined(key, *header)
        if value is not None:
            await self._put_in_folder(key, value)
        return value

    async def put(self, key: str, value: bytes) -> None:
        """See `Store.put`."""
        checked_key(key)
        await self._put_in_folder(key, value)
        if len(value) > MAX_PIECED_BYTES:
            await self._inner.delete(_header_key(key))
            return
        digest = await asyncio.to_thread(_digest, value)
        for number, piece in enumerate(_pieces(key, len(value), digest)):
            start = number * PIECE_BYTES
            await self._inner.put(piece, value[start : start + PIECE_BYTES])
        await self._inner.put(_header_key(key), _HEADER.pack(len(value), digest))

    async def put_if_absent(self, key: str, value: bytes) -> bool:
        """See `Store.put_if_absent`. Decided by the header, which is last to be written."""
        checked_key(key)
        if len(value) > MAX_PIECED_BYTES:
            return False
        digest = await asyncio.to_thread(_digest, value)
        for number, piece in enumerate(_pieces(key, len(value), digest)):
            start = number * PIECE_BYTES
            await self._inner.put(piece, value[start : start + PIECE_BYTES])
        header = _HEADER.pack(len(value), digest)
        stored = await self._inner.put_if_absent(_header_key(key), header)
        if stored:
            await self._put_in_folder(key, value)
        return stored

    async def contains(self, keys: Iterable[str]) -> set[str]:
        """See `Store.contains`. An entry that has lost a piece is not there."""
        wanted = {key for key in keys if checked_key(key)}
        found: set[str] = set()
        if self._folder is not None and wanted:
            some, inside = next(iter(wanted)), self._folder.contains(wanted)
            found = await self._failures.result(self._folder, "contains", some, inside) or set()
        for key in wanted - found:
            header = await self._header(key)
            if header is None:
                continue
            pieces = _pieces(key, *header)
            if len(await self._inner.contains(pieces)) == len(pieces):
                found.add(key)
        return found

    async def delete(self, key: str) -> None:
        """See `Store.delete`. The pieces leave when they have not been used for long."""
        checked_key(key)
        if self._folder is not None:
            await self._failures.result(self._folder, "delete", key, self._folder.delete(key))
        await self._inner.delete(_header_key(key))

    def stats(self) -> StoreStats:
        """Those of the inner store."""
        return self._inner.stats()

    def tiers(self) -> Mapping[str, StoreStats]:
        """See `Store.tiers`."""
        return {**self._inner.tiers(), **(self._folder.tiers() if self._folder is not None else {})}

    async def close(self) -> None:
        """Closes both."""
        await self._inner.close()
        if self._folder is not None:
            await self._folder.close()

    async def _put_in_folder(self, key: str, value: bytes) -> None:
        if self._folder is not None:
            await self._failures.result(self._folder, "put", key, self._folder.put(key, value))

    async def _header(self, key: str) -> tuple[int, bytes] | None:
        header = await self._inner.get(_header_key(key))
        if header is None or len(header) != _HEADER.size:
            return None
        size, digest = _HEADER.unpack(header)
        return (size, digest) if size <= MAX_PIECED_BYTES else None

    async def _joined(self, key: str, size: int, digest: bytes) -> bytes | None:
        names = _pieces(key, size, digest)
        parts: list[bytes] = []
        for start in range(0, len(names), _AT_ONCE):
            some = [self._inner.get(name) for name in names[start : start + _AT_ONCE]]
            for part in await asyncio.gather(*some):
                if part is None:
                    return None
                parts.append(part)
        value = b"".join(parts)
        return value if await asyncio.to_thread(_digest, value) == digest else None


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _header_key(key: str) -> str:
    return f"pieced/{hashlib.sha256(key.encode()).hexdigest()}"


def _pieces(key: str, size: int, digest: bytes) -> list[str]:
    """The names of the pieces of an entry."""
    whole = hashlib.sha256(key.encode() + digest)
    names = []
    for number in range(-(-size // PIECE_BYTES)):
        piece = whole.copy()
        piece.update(number.to_bytes(4, "big"))
        names.append(f"pieces/{piece.hexdigest()}")
    return names

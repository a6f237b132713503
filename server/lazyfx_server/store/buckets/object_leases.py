"""Leases in a bucket, whose objects can be written on a condition and do not expire.

A lease is an object that its holder writes again and again. A server that sees the same version for
as long as the holder said knows that the lease has ended: by its own clock, so that none are
compared. The tag of an object is the digest of its bytes, so each version has other ones::

    4 bytes milliseconds | 8 random bytes | value
"""

from __future__ import annotations

import secrets
import struct
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol

MOST_REQUESTS: Final = 3
"""To take or renew a lease: one in vain, a look at what is there, and one that replaces it."""

_HEAD: Final = struct.Struct(">I8s")
_MAX_BYTES: Final = 4096
_MAX_LEASES: Final = 4096


class Objects(Protocol):
    """The objects of a bucket. Raises StoreError if there is no answer, or a refusal."""

    async def read_object(self, name: str, most_bytes: int) -> tuple[bytes, str] | None:
        """The bytes and the tag of an object; no bytes if it is larger, None if there is none."""

    async def write_object(self, name: str, data: bytes, replaces: str | None) -> str | None:
        """Write an object if its tag is `replaces`; if that is None, only where there is none.

        Returns:
            Its new tag; None if it was not written.
        """

    async def delete_object(self, name: str) -> None:
        """Delete an object, if there is one."""


@dataclass(frozen=True, slots=True)
class _Version:
    """A version of a lease, as this process has seen or written it.

    Attributes:
        value: What its holder wrote.
        tag: The tag of the object.
        seconds: How long it stays if it is not written again.
        since: When it was first seen, by `time.monotonic`.
        is_own: Whether this process wrote it.
    """

    value: bytes
    tag: str
    seconds: float
    since: float
    is_own: bool = False

    @classmethod
    def read(cls, data: bytes, tag: str) -> _Version:
        """A lease of another process, whose time runs from now; malformed ones have ended."""
        if len(data) < _HEAD.size:
            return cls(b"", tag, 0.0, time.monotonic())
        milliseconds, _ = _HEAD.unpack_from(data)
        return cls(data[_HEAD.size :], tag, milliseconds / 1000, time.monotonic())

    def seconds_left(self) -> float:
        """How long it stays from now on."""
        return self.since + self.seconds - time.monotonic()


class ObjectLeases:
    """The leases of a bucket; see `LeasingStore`. Renewing one that is held here takes one request.

    Args:
        objects: The bucket.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._known: OrderedDict[str, _Version] = OrderedDict()

    async def take(self, name: str, value: bytes, seconds: float) -> bool:
        """See `LeasingStore.take_lease`."""
        if await self._write(name, None, value, seconds):
            return True
        # It has this value if the answer to a write was lost, and the write was repeated.
        return await self._take_over(name, value, value, seconds)

    async def renew(self, name: str, token: bytes, value: bytes, seconds: float) -> bool:
        """See `LeasingStore.renew_lease`."""
        known = self._known.get(name)
        is_held = known is not None and known.is_own and known.value.startswith(token)
        tag = known.tag if known is not None and is_held else None
        if await self._write(name, tag, value, seconds):
            return True
        return await self._take_over(name, token, value, seconds)

    async def release(self, name: str, token: bytes) -> None:
        """See `LeasingStore.release_lease`.

        Nobody can have taken over one that was renewed a moment ago. An older one ends by itself,
        because a bucket does not delete on a condition.
        """
        known = self._known.get(name)
        if known is None or not known.is_own or not known.value.startswith(token):
            return
        del self._known[name]
        if known.seconds_left() > known.seconds / 2:
            await self._objects.delete_object(name)

    async def read(self, name: str) -> tuple[bytes, float] | None:
        """See `LeasingStore.read_lease`."""
        lease = await self._read(name)
        if lease is None or lease.seconds_left() <= 0:
            return None
        return lease.value, lease.seconds_left()

    async def _read(self, name: str) -> _Version | None:
        found = await self._objects.read_object(name, _MAX_BYTES)
        if found is None:
            self._known.pop(name, None)
            return None
        data, tag = found
        known = self._known.get(name)
        if known is None or known.tag != tag:
            known = self._remember(name, _Version.read(data, tag))
        return known

    async def _take_over(self, name: str, token: bytes, value: bytes, seconds: float) -> bool:
        """Replace a lease that has ended, or that begins with this token."""
        lease = await self._read(name)
        if lease is None:
            return await self._write(name, None, value, seconds)
        if not lease.value.startswith(token) and lease.seconds_left() > 0:
            return False
        return await self._write(name, lease.tag, value, seconds)

    async def _write(self, name: str, replaces: str | None, value: bytes, seconds: float) -> bool:
        """Write a lease if there is none, or if it has a tag; whether that was so."""
        began = time.monotonic()
        head = _HEAD.pack(int(seconds * 1000), secrets.token_bytes(8))
        tag = await self._objects.write_object(name, head + value, replaces)
        if tag is not None:
            self._remember(name, _Version(value, tag, seconds, began, is_own=True))
        return tag is not None

    def _remember(self, name: str, lease: _Version) -> _Version:
        self._known[name] = lease
        self._known.move_to_end(name)
        if len(self._known) > _MAX_LEASES:
            self._known.popitem(last=False)
        return lease

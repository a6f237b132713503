"""The interface of a store: bytes under content-addressed keys, within a bound."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol, runtime_checkable

_KEY: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}/[0-9a-f]{64}")

Operation = Literal["get", "put", "contains", "delete"]
RemoteTierName = Literal["redis", "s3"]
TierName = Literal["memory", "disk", RemoteTierName]


class StoreError(Exception):
    """A store could not do what it was asked to: a full disk, a refused write."""


class UnreachableError(StoreError):
    """A store did not answer, or not in time."""


class MissingStoreError(StoreError):
    """There is no such store, such as a bucket that nobody created."""


class SkippedError(StoreError):
    """A store was not asked, because it does not answer at present."""


class InvalidKeyError(ValueError):
    """The key does not have the form "<space>/<64 hex digits>"."""


OnError = Callable[[str, Operation, str, Exception], None]
"""Called for a failed operation that was answered as a miss: tier, operation, key, error."""

OnRecovered = Callable[[str, Operation], None]
"""Called when an operation succeeds that has failed before: tier, operation."""

OnCorrupt = Callable[[str, str], None]
"""Called for a corrupt entry that was quarantined: tier, key."""


OnChange = Callable[[str, "StoreError | None"], None]
"""Called when a remote store is no longer used, with its tier and the reason, and with
None when it is used."""


@dataclass(frozen=True)
class StoreHooks:
    """What is called when something happens in a store.

    Attributes:
        on_error: For each failed operation, which was answered as a miss.
        on_recovered: For each success of an operation that has failed before.
        on_corrupt: For each corrupt entry that was quarantined.
        on_change: When a remote store is no longer used, and when it is used again.
    """

    on_error: OnError | None = None
    on_recovered: OnRecovered | None = None
    on_corrupt: OnCorrupt | None = None
    on_change: OnChange | None = None


def checked_key(key: str) -> tuple[str, str]:
    """Splits a key into its space and its 64 hex digits.

    A space is up to 64 of a-z, 0-9, "_" and "-", the first one a letter or digit,
    so that it is safe as a file name.

    Raises:
        InvalidKeyError: The key does not have this form.
    """
    if _KEY.fullmatch(key) is None:
        raise InvalidKeyError(f"not a store key: {key[:120]!r}")
    space, digits = key.split("/")
    return space, digits


@dataclass(frozen=True)
class StoreStats:
    """What a store holds.

    Attributes:
        entries: Number of entries.
        bytes: Bytes that they occupy, including the store's overhead.
        limit_bytes: The bound on `bytes`.
        evictions: Entries evicted since the store was opened.
    """

    entries: int
    bytes: int
    limit_bytes: int
    evictions: int


class Store(Protocol):
    """Bytes under keys. Designed for immutable entries: the last put wins.

    Every method raises InvalidKeyError for a key that `checked_key` refuses, and
    may raise StoreError, except on stores that say otherwise.
    """

    @property
    def name(self) -> str:
        """The name of the tier for people and metrics: "memory", "disk"."""

    async def get(self, key: str) -> bytes | None:
        """The value, or None if there is none. Counts as a use of the entry."""

    async def put(self, key: str, value: bytes) -> None:
        """Store a value. A value larger than the whole bound is not kept."""

    async def put_if_absent(self, key: str, value: bytes) -> bool:
        """Stores a value unless there is one; exactly one of those who try at once does.

        Returns:
            Whether this value was stored. One that is larger than the whole bound is not.
        """

    async def contains(self, keys: Iterable[str]) -> set[str]:
        """The keys that have a value. Counts as a use of them."""

    async def delete(self, key: str) -> None:
        """Delete a value, if there is one."""

    def stats(self) -> StoreStats:
        """Statistics of the store; of the lowest tier, if it is tiered."""

    def tiers(self) -> Mapping[str, StoreStats]:
        """`stats` of every tier by name, fastest first. Thread-safe."""

    async def close(self) -> None:
        """Finish pending operations and release resources. May be called twice."""


class QuarantiningStore(Store, Protocol):
    """A store that can quarantine a corrupt entry for inspection."""

    async def quarantine(self, key: str) -> None:
        """Move the entry out of the store without destroying it."""


@dataclass(frozen=True)
class Reading:
    """A value that a remote store has begun to send.

    Attributes:
        size: Its length in bytes.
        rest: Waits for all of it.
    """

    size: int
    rest: Callable[[], Awaitable[bytes]]


class RemoteStore(QuarantiningStore, Protocol):
    """A store on another machine, which may be slow, frozen or away.

    Its methods raise UnreachableError if it did not answer, StoreError if it refused.
    """

    async def get(self, key: str) -> bytes | None:
        """See `Store.get`."""
        reading = await self.begin_get(key)
        return None if reading is None else await reading.rest()

    async def begin_get(self, key: str) -> Reading | None:
        """`get` in two steps: first the answer begins, then the value arrives."""

    async def refresh(self) -> None:
        """Fetch what `stats` returns; a small request, which shows whether the store answers."""


@runtime_checkable
class LeasingStore(RemoteStore, Protocol):
    """A remote store that also keeps leases: short values that vanish by themselves.

    Leases have names of their own, so that the entry of a key and its lease are two things.
    """

    @property
    def requests_per_lease(self) -> int:
        """How many requests it takes at most to take or to renew one."""

    async def take_lease(self, key: str, value: bytes, seconds: float) -> bool:
        """Keeps a value for a time, unless there is one.

        Returns:
            Whether this one is kept.
        """

    async def renew_lease(self, key: str, token: bytes, value: bytes, seconds: float) -> bool:
        """Replaces a value that begins with `token`, or that has vanished.

        Returns:
            Whether it did; another value stays.
        """

    async def release_lease(self, key: str, token: bytes) -> None:
        """Removes a value that begins with `token`."""

    async def read_lease(self, key: str) -> tuple[bytes, float] | None:
        """A value, and for how many seconds it will stay; negative if it would for ever."""

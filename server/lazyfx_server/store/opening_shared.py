"""From URLs to the store that servers share. Loads redis and obstore only where they are used."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from lazyfx_server.store.circuit_breaker import CircuitBreaker
from lazyfx_server.store.contract import LeasingStore, RemoteStore, Store, StoreHooks
from lazyfx_server.store.disk_store import DiskStore
from lazyfx_server.store.leases import Leases
from lazyfx_server.store.pieces_store import PiecesStore
from lazyfx_server.store.shared_identity import SharedIdentity
from lazyfx_server.store.shared_store import LARGE_BYTES, SharedStore
from lazyfx_server.store.verified_store import ENVELOPE_BYTES, VerifiedStore

REDIS_SCHEMES: Final = ("redis", "rediss", "unix")
S3_SCHEMES: Final = ("s3",)

# A server that does not speak TLS waits for the end of a line.
_NOT_TLS: Final = "; rediss:// needs a server that speaks TLS, redis:// is for others"

MAX_ENTRY_BYTES: Final = 256 << 20
"""Longer entries are not shared."""


class SharedStoreError(ValueError):
    """A URL of a shared store cannot be used."""


@dataclass(frozen=True)
class SharedStoreSettings:
    """What a shared store is made of.

    Attributes:
        store: URL of the store; see REDIS_SCHEMES and S3_SCHEMES.
        blobs: URL of a bucket for large entries, or None.
        folder: Where large entries are kept, too, without `blobs`.
        folder_bytes: Bound on that folder.
        wait_seconds: How long a request waits for a remote store to begin its answer.
        ttl_seconds: How long an entry stays in Redis that nobody uses.
        lease_seconds: How long a lease stays that is not renewed.
    """

    store: str
    blobs: str | None
    folder: Path | None
    folder_bytes: int
    wait_seconds: float
    ttl_seconds: int
    lease_seconds: float = 2.5


def open_shared_store(
    settings: SharedStoreSettings,
    identity: SharedIdentity,
    hooks: StoreHooks,
) -> SharedStore:
    """The store of several servers; call `connect` before it is used.

    Args:
        settings: What it is made of.
        identity: What the servers have in common.
        hooks: What is called when something happens in it.

    Raises:
        SharedStoreError: A URL cannot be used, or a package is missing.
        StoreError: The folder cannot be used.
    """
    remotes: list[CircuitBreaker] = []

    def guarded(remote: RemoteStore, hint: str = "") -> Store:
        def probe() -> Awaitable[None]:
            return identity.check(remote)

        breaker = CircuitBreaker(
            remote,
            wait_seconds=settings.wait_seconds,
            probe=probe,
            on_change=hooks.on_change,
            hint=hint,
        )
        remotes.append(breaker)
        return VerifiedStore(breaker, secret=identity.entry_secret, on_corrupt=hooks.on_corrupt)

    store = open_remote(settings.store, settings.ttl_seconds)
    small = guarded(store, _NOT_TLS if settings.store.startswith("rediss:") else "")
    large: Store | None = None
    if settings.blobs is not None:
        large = guarded(open_remote(settings.blobs, settings.ttl_seconds))
    elif settings.store.partition(":")[0] in REDIS_SCHEMES:
        folder: Store | None = None
        if settings.folder is not None:
            disk = DiskStore(settings.folder, settings.folder_bytes)
            folder = VerifiedStore(disk, on_corrupt=hooks.on_corrupt)
        large = PiecesStore(small, folder, on_error=hooks.on_error, on_recovered=hooks.on_recovered)
    leases = None
    if isinstance(store, LeasingStore):
        leases = Leases(store, remotes[0], identity.entry_secret, settings.lease_seconds)
    return SharedStore(
        small,
        large,
        remotes,
        leases=leases,
        on_error=hooks.on_error,
        on_recovered=hooks.on_recovered,
    )


def open_remote(url: str, ttl_seconds: int) -> RemoteStore:
    """One remote store, not connected yet.

    Raises:
        SharedStoreError: The URL cannot be used, or a package is missing.
    """
    scheme = url.partition(":")[0]
    try:
        _require_encoded(url)
        if scheme in REDIS_SCHEMES:
            return _redis(url, ttl_seconds)
        if scheme in S3_SCHEMES:
            return _s3(url)
    except ModuleNotFoundError as error:
        extra = "s3" if scheme in S3_SCHEMES else "redis"
        raise SharedStoreError(
            f"{shown(url)} needs the package {error.name}: pip install 'lazyfx[{extra}]'"
        ) from error
    except ValueError as error:
        raise SharedStoreError(f"{shown(url)}: {error}") from None
    raise SharedStoreError(
        f"{shown(url)} does not begin with redis://, rediss://, unix:// or s3://"
    )


def shown(url: str) -> str:
    """A URL for people and logs: without user, password and query."""
    try:
        parts = urlsplit(url)
        if _ends_early(url):
            return f"{parts.scheme}://..."
    except ValueError:
        return "the URL"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _ends_early(url: str) -> bool:
    """Whether an unescaped character of a password has ended the host's part, and is shown."""
    parts = urlsplit(url)
    return "@" in parts.path + parts.query + parts.fragment


def _require_encoded(url: str) -> None:
    if _ends_early(url):
        raise ValueError("percent-encode the characters / ? # @ in user and password")


def _redis(url: str, ttl_seconds: int) -> RemoteStore:
    from lazyfx_server.store.redis_store import RedisStore

    most = LARGE_BYTES + ENVELOPE_BYTES
    return RedisStore(url, ttl_seconds=ttl_seconds, max_entry_bytes=most)


def _s3(url: str) -> RemoteStore:
    from lazyfx_server.store.buckets.s3_store import S3Store

    return S3Store(url, max_entry_bytes=MAX_ENTRY_BYTES)

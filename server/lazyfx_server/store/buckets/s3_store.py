"""A store in a bucket of S3, or of anything that speaks its protocol.

Entry ``blobs/<64 digits>`` is the object ``<prefix>/lazyfx-<version>/blobs/<64 digits>``; damaged
ones are moved to ``<prefix>/lazyfx-<version>/quarantine/``. Objects appear whole or not at all.
Nothing here removes old ones: set lifecycle rules. Credentials, region and endpoint come from
the environment (``AWS_*``), as everywhere. The only file that imports obstore.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError
from obstore.store import S3Store as Bucket

from lazyfx_server.store.buckets.object_leases import MOST_REQUESTS, ObjectLeases
from lazyfx_server.store.contract import (
    LeasingStore,
    MissingStoreError,
    Reading,
    RemoteTierName,
    StoreError,
    StoreStats,
    UnreachableError,
    checked_key,
)

if TYPE_CHECKING:
    from obstore import PutMode, PutResult
    from obstore.store import RetryConfig

STORE_VERSION: Final = 1
"""Part of every name. Raised when entries change their form, so that old ones are not found."""

# As in redis_store.py: no caller waits so long.
_CONNECT_SECONDS: Final = 2.0
_REQUEST_SECONDS: Final = 30.0
_AT_ONCE: Final = 32
# S3 answers 500 or 503 now and then; what lasts longer is the breaker's business.
_RETRIES: Final[RetryConfig] = {
    "max_retries": 2,
    "backoff": {
        "init_backoff": timedelta(seconds=0.01),
        "max_backoff": timedelta(seconds=0.1),
        "base": 2,
    },
    "retry_timeout": timedelta(seconds=2),
}
# Without other credentials, those of the machine's role are requested there.
_METADATA_SERVICE: Final = "169.254."
_LET_GO_SECONDS: Final = 0.05
_NOBODYS_KEY: Final = "probe/" + "0" * 64

T = TypeVar("T")


class S3Store(LeasingStore):
    """Keeps values in a bucket.

    Args:
        url: ``s3://bucket/prefix``.
        max_entry_bytes: Longer values are not kept, and not read.

    Raises:
        ValueError: The URL cannot be used.
    """

    def __init__(self, url: str, *, max_entry_bytes: int) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc:
            raise ValueError("is not of the form s3://bucket/prefix")
        prefix = "/".join(
            part for part in (parts.path.strip("/"), f"lazyfx-{STORE_VERSION}") if part
        )
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        self._bucket_name = parts.netloc
        self._most = max_entry_bytes
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._leases = ObjectLeases(self)
        try:
            self._bucket = Bucket(
                parts.netloc,
                prefix=prefix,
                endpoint=endpoint,
                client_options={
                    "allow_http": bool(endpoint and endpoint.startswith("http://")),
                    "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
                    "timeout": timedelta(seconds=_REQUEST_SECONDS),
                },
                retry_config=_RETRIES,
            )
        except BaseError as error:
            raise ValueError(f"cannot be used: {error}") from error

    @property
    def name(self) -> RemoteTierName:
        """The tier's name."""
        return "s3"

    async def begin_get(self, key: str) -> Reading | None:
        """See `RemoteStore.begin_get`."""
        checked_key(key)
        try:
            found = await self._answer(lambda: obstore.get_async(self._bucket, key))
        except FileNotFoundError:
            return None
        size = found.meta["size"]
        if size > self._most:
            raise StoreError(f"s3: an entry of {size} bytes is too long")

        async def rest() -> bytes:
            return bytes(await self._answer(lambda: found.bytes_async()))

        return Reading(size, rest)

    async def put(self, key: str, value: bytes) -> None:
        """See `Store.put`."""
        checked_key(key)
        if len(value) > self._most:
            await self.delete(key)
        else:
            await self._put(key, value, "overwrite")

    async def put_if_absent(self, key: str, value: bytes) -> bool:
        """See `Store.put_if_absent`."""
        checked_key(key)
        if len(value) > self._most:
            return False
        try:
            await self._put(key, value, "create")
        except FileExistsError:
            return False
        return True

    async def contains(self, keys: Iterable[str]) -> set[str]:
        """See `Store.contains`. Is not a use: objects have no time of last use."""
        wanted = set(keys)
        for key in wanted:
            checked_key(key)

        async def there(key: str) -> bool:
            try:
                await self._answer(lambda: obstore.head_async(self._bucket, key))
            except FileNotFoundError:
                return False
            return True

        found = await asyncio.gather(*(there(key) for key in wanted))
        return {key for key, is_there in zip(wanted, found, strict=True) if is_there}

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        checked_key(key)
        await self.delete_object(key)

    async def quarantine(self, key: str) -> None:
        """Moves the object to the folder ``quarantine``."""
        space, digits = checked_key(key)
        # Another server may have been first.
        with contextlib.suppress(FileNotFoundError):
            await self._answer(
                lambda: obstore.rename_async(self._bucket, key, f"quarantine/{space}-{digits}")
            )

    @property
    def requests_per_lease(self) -> int:
        """See `MOST_REQUESTS`."""
        return MOST_REQUESTS

    async def take_lease(self, key: str, value: bytes, seconds: float) -> bool:
        """See `LeasingStore.take_lease`."""
        return await self._leases.take(_lease_name(key), value, seconds)

    async def renew_lease(self, key: str, token: bytes, value: bytes, seconds: float) -> bool:
        """See `LeasingStore.renew_lease`."""
        return await self._leases.renew(_lease_name(key), token, value, seconds)

    async def release_lease(self, key: str, token: bytes) -> None:
        """See `LeasingStore.release_lease`."""
        await self._leases.release(_lease_name(key), token)

    async def read_lease(self, key: str) -> tuple[bytes, float] | None:
        """See `LeasingStore.read_lease`."""
        return await self._leases.read(_lease_name(key))

    async def read_object(self, name: str, most_bytes: int) -> tuple[bytes, str] | None:
        """See `Objects.read_object`."""
        try:
            found = await self._answer(lambda: obstore.get_async(self._bucket, name))
            data = b""
            if found.meta["size"] <= most_bytes:
                data = bytes(await self._answer(lambda: found.bytes_async()))
        except FileNotFoundError:
            return None
        return data, found.meta["e_tag"] or ""

    async def write_object(self, name: str, data: bytes, replaces: str | None) -> str | None:
        """See `Objects.write_object`."""
        mode: PutMode = "create" if replaces is None else {"e_tag": replaces}
        try:
            written = await self._put(name, data, mode)
        except FileExistsError:
            return None
        return written["e_tag"] or ""

    async def delete_object(self, name: str) -> None:
        """See `Objects.delete_object`."""
        with contextlib.suppress(FileNotFoundError):
            await self._answer(lambda: obstore.delete_async(self._bucket, name))

    async def refresh(self) -> None:
        """See `RemoteStore.refresh`."""
        await self.contains([_NOBODYS_KEY])

    def stats(self) -> StoreStats:
        """Zeros: a bucket does not report what it holds."""
        return StoreStats(0, 0, 0, 0)

    def tiers(self) -> Mapping[str, StoreStats]:
        """No tier: see `stats`."""
        return {}

    async def close(self) -> None:
        """Let obstore's threads finish: one that still runs when Python exits aborts the process.

        Connections close by themselves. The entries stay.
        """
        await asyncio.sleep(_LET_GO_SECONDS)

    async def _put(self, name: str, value: bytes, mode: PutMode) -> PutResult:
        try:
            return await self._answer(
                lambda: obstore.put_async(self._bucket, name, value, use_multipart=False, mode=mode)
            )
        except FileNotFoundError as error:
            raise MissingStoreError(
                f"s3: there is no bucket {self._bucket_name!r}; create it, or name another one"
            ) from error

    async def _answer(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What S3 answers.

        Raises:
            FileNotFoundError: No object has the name.
            FileExistsError: One had it already.
            UnreachableError: There was no answer, or S3 is out of order.
            StoreError: S3 refused.
        """
        try:
            async with self._room:
                return await ask()
        except FileNotFoundError:
            raise
        except (AlreadyExistsError, PreconditionError) as error:
            raise FileExistsError from error
        except (GenericError, OSError) as error:
            raise UnreachableError(f"s3: {_shortened(error)}") from error
        except (BaseError, ValueError) as error:
            raise StoreError(f"s3: {_shortened(error)}") from error


def _lease_name(key: str) -> str:
    space, digits = checked_key(key)
    return f"leases/{space}-{digits}"


def _shortened(error: Exception) -> str:
    text = " ".join(str(error).partition("Debug source:")[0].split())[:300]
    if _METADATA_SERVICE in text:
        text = (
            "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine "
            f"a role ({text})"
        )
    return text

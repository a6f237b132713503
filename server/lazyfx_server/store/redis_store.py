"""A store in Redis or Valkey, for entries of up to about a megabyte.

Entry ``modules/<64 digits>`` is the string ``<prefix>:<version>:modules/<64 digits>``. Each use
renews its time to live. The bound is the server's own: set ``maxmemory`` and ``maxmemory-policy
allkeys-lru`` there. The only file that imports redis.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from lazyfx_server.store.contract import (
    LeasingStore,
    Reading,
    RemoteTierName,
    StoreError,
    StoreStats,
    UnreachableError,
    checked_key,
)

STORE_VERSION: Final = 1
"""Part of every name. Raised when entries change their form, so that old ones are not found."""

# No caller waits so long (see circuit_breaker.py): it ends calls that were given up. Short limits
# would blame the server for what this process is slow at, such as opening many connections.
_SOCKET_SECONDS: Final = 2.0
_CONNECTIONS: Final = 32
_QUARANTINED_SECONDS: Final = 86_400
_LEASE_BYTES: Final = 4096

# Whoever holds a lease knows the first bytes of its value. A lease that has expired is taken again.
_RENEW: Final = """
local found = redis.call('get', KEYS[1])
if found and string.sub(found, 1, #ARGV[1]) ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[2], 'px', ARGV[3])
return 1
"""
_RELEASE: Final = """
local found = redis.call('get', KEYS[1])
if found and string.sub(found, 1, #ARGV[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""

T = TypeVar("T")


class RedisStore(LeasingStore):
    """Keeps values in a Redis or Valkey server.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as redis-py takes it; ``prefix=`` in
            its query is what names begin with, "lazyfx" when left out.
        ttl_seconds: How long an entry stays that nobody uses.
        max_entry_bytes: Longer values are not kept, and not read.

    Raises:
        ValueError: The URL cannot be used.
    """

    def __init__(self, url: str, *, ttl_seconds: int, max_entry_bytes: int) -> None:
        url, prefix = _without_prefix(url)
        self._names = f"{prefix}:{STORE_VERSION}:"
        self._ttl = ttl_seconds
        self._most = max_entry_bytes
        self._stats = StoreStats(0, 0, 0, 0)
        # No retries: a call that fails is a miss, and the breaker tries again.
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=_SOCKET_SECONDS,
            socket_timeout=_SOCKET_SECONDS,
            socket_connect_timeout=_SOCKET_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._renew = self._redis.register_script(_RENEW)
        self._release = self._redis.register_script(_RELEASE)

    @property
    def name(self) -> RemoteTierName:
        """The tier's name."""
        return "redis"

    async def begin_get(self, key: str) -> Reading | None:
        """See `RemoteStore.begin_get`. The whole value has arrived, or as much as is allowed."""
        name = self._name(key)
        asking = self._redis.pipeline(transaction=False)
        asking.getrange(name, 0, self._most)
        asking.expire(name, self._ttl)
        value, used = await _answer(asking.execute(raise_on_error=False))
        if isinstance(value, Exception):
            raise _translated(value)
        value = _bytes(value)
        # A replica that cannot be written to refuses the second and answers the first.
        if not value and used != 1:
            return None

        async def rest() -> bytes:
            return value

        return Reading(len(value), rest)

    async def put(self, key: str, value: bytes) -> None:
        """See `Store.put`."""
        if len(value) > self._most:
            await self.delete(key)
        else:
            await _answer(self._redis.set(self._name(key), value, ex=self._ttl))

    async def put_if_absent(self, key: str, value: bytes) -> bool:
        """See `Store.put_if_absent`."""
        name = self._name(key)
        if len(value) > self._most:
            return False
        return bool(await _answer(self._redis.set(name, value, ex=self._ttl, nx=True)))

    async def contains(self, keys: Iterable[str]) -> set[str]:
        """See `Store.contains`."""
        wanted = list(dict.fromkeys(keys))
        asking = self._redis.pipeline(transaction=False)
        for key in wanted:
            asking.expire(self._name(key), self._ttl)
        found = await _answer(asking.execute())
        return {key for key, there in zip(wanted, found, strict=True) if there}

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        await _answer(self._redis.delete(self._name(key)))

    async def quarantine(self, key: str) -> None:
        """Keeps the entry for a day under a name that is never read."""
        name = self._name(key)
        aside = f"{self._names}quarantine:{key}"
        moving = self._redis.pipeline(transaction=True)
        moving.rename(name, aside)
        moving.expire(aside, _QUARANTINED_SECONDS)
        try:
            await _answer(moving.execute())
        except StoreError as error:
            if "no such key" not in str(error):  # another server was first
                raise

    @property
    def requests_per_lease(self) -> int:
        """See `LeasingStore`; commands and scripts decide."""
        return 1

    async def take_lease(self, key: str, value: bytes, seconds: float) -> bool:
        """See `LeasingStore.take_lease`."""
        name, milliseconds = self._lease_name(key), int(seconds * 1000)
        return bool(await _answer(self._redis.set(name, value, px=milliseconds, nx=True)))

    async def renew_lease(self, key: str, token: bytes, value: bytes, seconds: float) -> bool:
        """See `LeasingStore.renew_lease`."""
        arguments: list[bytes | int] = [token, value, int(seconds * 1000)]
        return bool(await _answer(self._renew([self._lease_name(key)], arguments)))

    async def release_lease(self, key: str, token: bytes) -> None:
        """See `LeasingStore.release_lease`."""
        await _answer(self._release([self._lease_name(key)], [token]))

    async def read_lease(self, key: str) -> tuple[bytes, float] | None:
        """See `LeasingStore.read_lease`."""
        name = self._lease_name(key)
        asking = self._redis.pipeline(transaction=False)
        asking.getrange(name, 0, _LEASE_BYTES)
        asking.pttl(name)
        value, milliseconds = await _answer(asking.execute())
        ended = milliseconds == -2
        return None if ended or not value else (_bytes(value), milliseconds / 1000)

    async def refresh(self) -> None:
        """See `RemoteStore.refresh`."""
        asking = self._redis.pipeline(transaction=False)
        asking.info("memory")
        asking.info("stats")
        asking.dbsize()
        memory, stats, entries = await _answer(asking.execute())
        self._stats = StoreStats(
            entries=int(entries),
            bytes=int(memory.get("used_memory", 0)),
            limit_bytes=int(memory.get("maxmemory", 0)),
            evictions=int(stats.get("evicted_keys", 0)),
        )

    def stats(self) -> StoreStats:
        """The server's figures when it was last asked: all its keys, of lazyfx or not."""
        return self._stats

    def tiers(self) -> Mapping[str, StoreStats]:
        """See `Store.tiers`."""
        return {self.name: self.stats()}

    async def close(self) -> None:
        """Ends the connections. The entries stay."""
        # They may have ended already.
        with contextlib.suppress(exceptions.RedisError, OSError):
            await self._redis.aclose(close_connection_pool=True)

    def _lease_name(self, key: str) -> str:
        checked_key(key)
        return f"{self._names}lease:{key}"

    def _name(self, key: str) -> str:
        checked_key(key)
        return self._names + key


async def _answer(asking: Awaitable[T]) -> T:
    try:
        return await asking
    except (exceptions.RedisError, OSError) as error:
        raise _translated(error) from error


def _bytes(value: object) -> bytes:
    """A value of the kind that was asked for. `bytes` of a number would be that many zeros.

    Raises:
        StoreError: It is another one.
    """
    if value is None:
        return b""
    if not isinstance(value, bytes):
        raise StoreError(f"redis: it answered with a value of type {type(value).__name__}")
    return value


def _translated(error: Exception) -> StoreError:
    # A server that answers with an error does answer; redis-py's class for a wrong password is one
    # of connections.
    if isinstance(error, exceptions.AuthenticationError):
        return StoreError(
            "redis: the password (or user) is missing or wrong; set it in the URL: "
            f"redis://:PASSWORD@HOST ({error})"
        )
    unreachable = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)
    kind = UnreachableError if isinstance(error, unreachable) else StoreError
    return kind(f"redis: {type(error).__name__}: {error}")


def _without_prefix(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    # redis-py would take database 0.
    if parts.scheme != "unix" and not re.fullmatch(r"/?\d{0,9}", parts.path):
        raise ValueError("the database is a number: redis://HOST:PORT/0")
    query: list[tuple[str, Any]] = parse_qsl(parts.query)
    prefix = dict(query).get("prefix", "lazyfx")
    rest = urlencode([(name, value) for name, value in query if name != "prefix"])
    return urlunsplit(parts._replace(query=rest)), prefix

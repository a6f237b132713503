"""Shared stores as tests open them, and what they have reported."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
import store_servers

from lazyfx_server.store import (
    SharedIdentity,
    SharedStore,
    SharedStoreSettings,
    StoreHooks,
    open_shared_store,
)
from lazyfx_server.store.shared_store import LARGE_BYTES

SECRET = b"a secret of thirty-two bytes ..."
LARGE = bytes(LARGE_BYTES + 1)


def key(name: object) -> str:
    return f"modules/{hashlib.sha256(str(name).encode()).hexdigest()}"


def identity(secret: bytes = SECRET, keys: tuple[bytes, ...] = (b"key",)) -> SharedIdentity:
    return SharedIdentity(secret, lambda: keys, "copy the secret", "copy the key")


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    for _ in range(int(seconds * 50)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never became true")


@dataclass
class Told:
    """What a store has reported."""

    errors: list[tuple[str, str, Exception]] = field(default_factory=list)
    corrupt: list[tuple[str, str]] = field(default_factory=list)
    changes: list[tuple[str, bool]] = field(default_factory=list)

    def kinds(self) -> set[type[Exception]]:
        return {type(error) for _, _, error in self.errors}


@dataclass
class Opened:
    store: SharedStore
    told: Told


@contextlib.asynccontextmanager
async def opened(
    store: str,
    blobs: str | None = None,
    *,
    folder: Path | None = None,
    wait: float = 5.0,
    own: SharedIdentity | None = None,
    connect: bool = True,
) -> AsyncIterator[Opened]:
    told = Told()
    settings = SharedStoreSettings(
        store=store,
        blobs=blobs,
        folder=folder,
        folder_bytes=1 << 26,
        wait_seconds=wait,
        ttl_seconds=600,
    )
    shared = open_shared_store(
        settings,
        own or identity(),
        StoreHooks(
            on_error=lambda tier, operation, _key, error: told.errors.append(
                (tier, operation, error)
            ),
            on_corrupt=lambda tier, name: told.corrupt.append((tier, name)),
            on_change=lambda tier, problem: told.changes.append((tier, problem is None)),
        ),
    )
    if connect:
        await shared.connect()
    try:
        yield Opened(shared, told)
    finally:
        await shared.close()


def url(server: store_servers.Server) -> str:
    return f"redis://127.0.0.1:{server.port}/0"


def client(server: store_servers.Server) -> Any:
    return redis.Redis(port=server.port)


def stored(server: store_servers.Server, name: str) -> str:
    return f"lazyfx:1:{key(name)}"


@dataclass
class Way:
    """A port that leads to another one.

    Attributes:
        port: The port.
        delay: Seconds by which whatever is sent arrives later.
    """

    port: int = 0
    delay: float = 0.0


@contextlib.asynccontextmanager
async def forwarding(to: int, *, port: int = 0) -> AsyncIterator[Way]:
    """Forwards connections to a port of this machine."""
    way = Way()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await asyncio.sleep(way.delay)
                writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(pump(reader, back), pump(there, writer))

    proxy = await asyncio.start_server(accept, "127.0.0.1", port)
    way.port = proxy.sockets[0].getsockname()[1]
    yield way
    proxy.close()

"""Helpers for a server's lifecycle: periodic tasks, and stopping on signals."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Final

_log = logging.getLogger("lazyfx_server")

_POLL_SECONDS: Final = 0.05


def stop_signals() -> asyncio.Event:
    """An event that is set on SIGTERM or SIGINT; call it in the event loop."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def finishes_before(stop: asyncio.Event, work: Coroutine[object, object, None]) -> bool:
    """Run `work` until `stop` is set, which cancels it; returns whether it finished first."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        return False
    await working
    return True


async def when_free(host: str, port: int, seconds: float) -> None:
    """Wait until no other process listens on an address, or until the time is up.

    Args:
        host: Its host.
        port: Its port.
        seconds: How long the other process may take to end.
    """
    end = time.monotonic() + seconds
    is_waiting = False
    while port and time.monotonic() < end and is_in_use(host, port):
        if not is_waiting:
            is_waiting = True
            _log.info("waiting up to %g s for another server to leave %s:%d", seconds, host, port)
        await asyncio.sleep(_POLL_SECONDS)


def is_in_use(host: str, port: int) -> bool:
    """Whether a process listens on an address."""
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return True
    return False


@asynccontextmanager
async def repeating(seconds: float, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Call `work` periodically within the block."""

    async def repeat() -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except Exception:  # noqa: BLE001 - devices and ledger are tried again
                _log.exception("a periodic task failed; it goes on")

    task = asyncio.ensure_future(repeat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

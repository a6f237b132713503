"""What is no Redis, or a broken one: each answer is a StoreError or a miss, and small."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from lazyfx_server.store.circuit_breaker import CircuitBreaker
from lazyfx_server.store.contract import StoreError
from lazyfx_server.store.leases import Leases
from lazyfx_server.store.redis_store import RedisStore

KEY = "modules/" + "a" * 64
ANSWERS = {
    "text": b"+hello\r\n",
    "a number": b":7\r\n",
    "a number of bytes": b":9223372036854775807\r\n",
    "a negative number": b":-5\r\n",
    "a list": b"*2\r\n:1\r\n+x\r\n",
    "not a number": b":abc\r\n",
    "read-only": b"-READONLY You can't write against a read only replica.\r\n",
    "full": b"-OOM command not allowed\r\n",
    "loading": b"-LOADING Redis is loading\r\n",
    "denied": b"-NOPERM this user has no permissions\r\n",
    "no protocol": b"\xff\xfe\r\n",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_answer_that_is_none_fails_no_request(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            arguments = []
            for _ in range(int(line[1:])):
                length = int((await reader.readline())[1:])
                arguments.append((await reader.readexactly(length + 2))[:-2])
            is_greeting = arguments[0].upper() in (b"CLIENT", b"SELECT", b"HELLO")
            writer.write(b"+OK\r\n" if is_greeting else answer)
        writer.close()

    async def nothing() -> None:
        pass

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = RedisStore(f"redis://127.0.0.1:{port}/0", ttl_seconds=60, max_entry_bytes=2**20)
    store.refresh = nothing  # type: ignore[method-assign]
    breaker = CircuitBreaker(store, wait_seconds=5.0, probe=nothing)
    await breaker.connect()
    leases = Leases(store, breaker, b"s" * 32, 2.5)
    questions: list[Callable[[], Awaitable[object]]] = [
        lambda: leases.take(KEY),
        lambda: leases.holder(KEY),
        lambda: breaker.get(KEY),
        lambda: breaker.contains([KEY]),
        lambda: breaker.quarantine(KEY),
    ]
    try:
        for question in questions:
            with contextlib.suppress(StoreError):
                await question()
    finally:
        await breaker.close()
        server.close()

"""(a) A hit with a cached digest, compared with a bare echo of the same size."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import grpc
import grpc.aio

import lazyfx
from bench.echo import METHOD, payload
from bench.graphs import Case
from bench.rounds import Row, take_turns_calling, timed_calls
from bench.servers import Servers
from lazyfx.calls.channel import _OPTIONS
from lazyfx.shared.pass_specs import PassSpec

Call = Callable[[bytes], Any]

IN_FLIGHT = 64
TARGET = 1.3
# A miss with the graph, a hit by digest, which earns a token, and a hit by that.
UNTIL_SHORT = 3
PLAIN: list[str | PassSpec] = [
    "dead_code_elimination", "common_subexpression_elimination", "constant_fold",
    "shape_propagation",
]  # fmt: skip


async def measure(case: Case, servers: Servers, rounds: int, calls: int) -> list[Row]:
    """Hits of the asynchronous client: with few passes, with many, and 64 in flight."""
    rows: list[Row] = []
    async with (
        lazyfx.connect_async(servers.lazyfx) as client,
        grpc.aio.insecure_channel(servers.echo, options=_OPTIONS) as channel,
    ):
        call: Call = channel.unary_unary(METHOD)  # type: ignore[assignment]
        lists = ((PLAIN, "four passes by name"), (case.passes, "with 30 rewrites"))
        for passes, what in lists:
            for _ in range(UNTIL_SHORT):
                handle = await client.compile(case.module, passes)
            if handle.cache.status != "hit":
                raise RuntimeError(f"a {handle.cache.status} where a hit was due")
            request_bytes = client._flows.compile_caller.first_request(
                handle._flows.prepared
            ).ByteSize()
            response_bytes = handle._flows.artifacts.response.ByteSize()
            data = payload(request_bytes, response_bytes)

            async def hit(passes: list[str | PassSpec] = passes) -> object:
                return await client.compile(case.module, passes)

            async def bare(data: bytes = data) -> object:
                return await call(data)

            ours, theirs = await take_turns_calling([hit, bare], rounds, calls)
            target = TARGET if passes is PLAIN else None
            size = f"{request_bytes} B -> {response_bytes} B"
            rows += [
                Row("(a) hit", f"echo, {size}", theirs),
                Row("(a) hit", f"hit, {what}", ours, against=theirs, target=target),
            ]
            if passes is PLAIN:
                rows += await _in_flight(hit, bare, rounds, calls)
    return rows


async def _in_flight(
    hit: Callable[[], Awaitable[object]], bare: Callable[[], Awaitable[object]],
    rounds: int, calls: int,
) -> list[Row]:  # fmt: skip
    """Calls a second with many in flight."""
    each = max(2, calls // 8)

    async def several(one: Callable[[], Awaitable[object]]) -> None:
        for _ in range(each):
            await one()

    rates: dict[str, list[float]] = {"echo": [], "hit": []}
    for number in range(1 + rounds):
        for name, one in (("echo", bare), ("hit", hit)):
            started = perf_counter()
            await asyncio.gather(*(several(one) for _ in range(IN_FLIGHT)))
            if number:
                rates[name].append(IN_FLIGHT * each / (perf_counter() - started))
    return [
        Row("(a) hit", f"echo, {IN_FLIGHT} in flight", rates["echo"], unit="calls/s"),
        Row("(a) hit", f"hit, {IN_FLIGHT} in flight", rates["hit"], unit="calls/s",
            against=rates["echo"]),
    ]  # fmt: skip


def measure_blocking(case: Case, servers: Servers, rounds: int, calls: int) -> list[Row]:
    """Hits of the blocking client compared with a blocking echo."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(lazyfx.connect(servers.lazyfx))
        channel = stack.enter_context(grpc.insecure_channel(servers.echo, options=_OPTIONS))
        call: Call = channel.unary_unary(METHOD)  # type: ignore[assignment]
        for _ in range(UNTIL_SHORT):
            made = client.compile(case.module, PLAIN)._flows
        request_bytes = client._flows.compile_caller.first_request(made.prepared).ByteSize()
        data = payload(request_bytes, made.artifacts.response.ByteSize())
        ours, theirs = timed_calls(
            [lambda: client.compile(case.module, PLAIN), lambda: call(data)], rounds, calls
        )
    return [
        Row("(a) hit", "blocking echo", theirs),
        Row("(a) hit", "hit, blocking client", ours, against=theirs),
    ]


def check_seconds(case: Case, repeats: int = 50) -> float:
    """Median seconds to find out that a cached graph has not changed."""
    from lazyfx.capture import remembering

    remembering.encode(case.module)
    remembered = remembering.cached_encoding(case.module)
    assert remembered is not None
    taken = []
    for _ in range(repeats):
        started = perf_counter()
        remembered.is_unchanged()
        taken.append(perf_counter() - started)
    return statistics.median(taken)

"""(a) Hits by a raw client compared with an echo: the server's CPU time, and calls per second.

The raw client sends the bytes of one request by token, again and again, and reads bytes. It costs
the same for both servers, so that the difference is the service's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc.aio

import lazyfx
from bench.echo import METHOD, payload
from bench.graphs import Case
from bench.hit import IN_FLIGHT, PLAIN, UNTIL_SHORT
from bench.rounds import Row
from bench.servers import Servers
from lazyfx.calls.channel import _OPTIONS

COMPILE = "/lazyfx.v1.GraphCompiler/Compile"
CPU_TARGET, THROUGHPUT_TARGET = 1.2, 0.85
_NANOSECONDS = 1e9


def cpu_seconds(pid: int) -> float:
    """CPU seconds of the threads of one process, to the nanosecond; children do not count."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / _NANOSECONDS


async def request_by_token(address: str, case: Case) -> tuple[bytes, int]:
    """The bytes of a request that hits by its token, and the size of its answer."""
    async with lazyfx.connect_async(address) as client:
        for _ in range(UNTIL_SHORT):
            handle = await client.compile(case.module, PLAIN)
        caller = client._flows.compile_caller
        request = caller.first_request(handle._flows.prepared).SerializeToString()
        return request, handle._flows.artifacts.response.ByteSize()


async def measure(case: Case, servers: Servers, rounds: int, calls: int) -> list[Row]:
    """CPU time of the servers per call, and calls per second, with 64 in flight."""
    request, answered = await request_by_token(servers.lazyfx, case)
    peers = (
        (servers.echo, METHOD, payload(len(request), answered), servers.pids[1]),
        (servers.lazyfx, COMPILE, request, servers.pids[0]),
    )
    cpu: list[list[float]] = [[], []]
    rates: list[list[float]] = [[], []]
    for number in range(1 + rounds):
        order: Sequence[int] = (0, 1) if number % 2 else (1, 0)
        for i in order:
            address, method, data, pid = peers[i]
            async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
                call: Any = channel.unary_unary(method)
                await call(data)
                before, started = cpu_seconds(pid), perf_counter()
                await _in_flight(call, data, calls)
                taken, spent = perf_counter() - started, cpu_seconds(pid) - before
            if number:
                cpu[i].append(spent / (calls // IN_FLIGHT * IN_FLIGHT))
                rates[i].append(calls // IN_FLIGHT * IN_FLIGHT / taken)
    size = f"{len(request)} B -> {answered} B"
    return [
        Row("(a) hit", f"echo, server CPU, {size}", cpu[0]),
        Row("(a) hit", "hit, raw client, server CPU", cpu[1], against=cpu[0], target=CPU_TARGET),
        Row("(a) hit", f"echo, raw client, {IN_FLIGHT} in flight", rates[0], unit="calls/s"),
        Row("(a) hit", f"hit, raw client, {IN_FLIGHT} in flight", rates[1], unit="calls/s",
            against=rates[0], note=f"at least {THROUGHPUT_TARGET}"),
    ]  # fmt: skip


async def _in_flight(call: Any, data: bytes, calls: int) -> None:
    async def several() -> None:
        for _ in range(calls // IN_FLIGHT):
            await call(data)

    await asyncio.gather(*(several() for _ in range(IN_FLIGHT)))

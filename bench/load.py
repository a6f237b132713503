"""Throughput and latency of hits, misses and both beside a bare echo, with 1 to 256 in flight.

    python -m bench.load                    # the table, about two minutes
    python -m bench.load --hits 1000000     # memory of the server over that many hits
    python -m bench.load --graphs 30000     # the same over that many graphs, each new
    python -m bench.load --soak 3600        # mixed load at a low rate for an hour, with its memory

Raw clients send prepared bytes, so that the clients cost the same for every row. A miss asks for a
small graph that no request before it has asked for, with its body in the request.
"""

from __future__ import annotations

import argparse
import asyncio
import operator
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import grpc.aio
import torch
from rich.console import Console
from rich.table import Table
from torch.fx import Graph, GraphModule

from bench.cores import apart
from bench.echo import METHOD, payload
from bench.raw_hits import COMPILE, cpu_seconds
from bench.servers import Servers, running
from lazyfx.calls.channel import _OPTIONS
from lazyfx.capture.preparing import Preparer
from lazyfx.shared.missing import BLOB_SUBJECT
from lazyfx.shared.pass_specs import normalize
from lazyfx.v1 import compiler_pb2 as pb

IN_FLIGHT: Final = (1, 16, 64, 256)
_PASSES: Final = ("dead_code_elimination", "common_subexpression_elimination")
_MISS_EVERY: Final = 20
"""Of mixed requests, one in so many is a miss."""
_PARTS: Final = 20
_MISSES_AT_ONCE: Final = 100
_SOAK_RATE: Final = 20.0
_SOAK_SAMPLES: Final = 12


@dataclass(frozen=True)
class Line:
    """One line of the table: calls per second, seconds of single calls, CPU seconds per call."""

    what: str
    in_flight: int
    rate: float
    latencies: list[float]
    cpu: float
    refused: int


class Requests:
    """Prepared requests, as bytes."""

    def __init__(self) -> None:
        self._preparer = Preparer()
        self._numbers = iter(range(10**9))
        self.hit = b""
        self.answer_bytes = 0

    async def prepare(self, call: Any) -> None:
        """Compile one graph, and get the token of its request."""
        module = _graph(-1)
        prepared = self._preparer.prepare(module, normalize(_PASSES))
        await call(self._with_graph(module))
        answer = pb.CompileResponse.FromString(
            await call(prepared.requests.whole.SerializeToString())
        )
        self.hit = pb.CompileRequest(request_token=answer.request_token).SerializeToString()
        self.answer_bytes = len(await call(self.hit))

    def _with_graph(self, module: GraphModule) -> bytes:
        prepared = self._preparer.prepare(module, normalize(_PASSES))
        subject = f"{BLOB_SUBJECT}{prepared.encoded.digest.hex()}"
        whole = prepared.requests.whole
        return self._preparer.provide_missing(prepared, whole, [subject])[0].SerializeToString()

    def misses(self, count: int) -> list[bytes]:
        """Requests that no server has seen."""
        return [self._with_graph(_graph(next(self._numbers))) for _ in range(count)]

    def mixed(self, count: int) -> list[bytes]:
        """Hits, and a few misses."""
        misses = iter(self.misses(count // _MISS_EVERY + 1))
        return [self.hit if i % _MISS_EVERY else next(misses) for i in range(count)]


def _graph(number: int) -> GraphModule:
    graph = Graph()
    value = graph.placeholder("x")
    for _ in range(20):
        value = graph.call_function(operator.mul, (value, 2))
    graph.output(graph.call_function(operator.add, (value, number)))
    return GraphModule(torch.nn.Module(), graph)


async def send(call: Any, requests: Iterator[bytes], in_flight: int) -> tuple[list[float], int]:
    """Send requests with so many in flight; seconds of each, and how many were refused."""
    latencies: list[float] = []
    refused = 0

    async def several() -> None:
        nonlocal refused
        for request in requests:
            started = perf_counter()
            try:
                await call(request)
            except grpc.aio.AioRpcError:
                refused += 1
            latencies.append(perf_counter() - started)

    await asyncio.gather(*(several() for _ in range(in_flight)))
    return latencies, refused


async def lines(servers: Servers, calls: int, say: Callable[[str], None]) -> list[Line]:
    """All lines; for each number in flight the four kinds take turns."""
    found = []
    requests = Requests()
    async with (
        grpc.aio.insecure_channel(servers.lazyfx, options=_OPTIONS) as channel,
        grpc.aio.insecure_channel(servers.echo, options=_OPTIONS) as echo_channel,
    ):
        call: Any = channel.unary_unary(COMPILE)
        echo: Any = echo_channel.unary_unary(METHOD)
        await requests.prepare(call)
        bare = payload(len(requests.hit), requests.answer_bytes)
        ours, peer = servers.pids
        for in_flight in IN_FLIGHT:
            say(f"{in_flight} in flight")
            count = max(calls, 4 * in_flight)
            few = max(calls // 10, 2 * in_flight)
            for what, target, pid, data in (
                ("echo", echo, peer, [bare] * count),
                ("hit", call, ours, [requests.hit] * count),
                ("mixed", call, ours, requests.mixed(count)),
                ("miss", call, ours, requests.misses(few)),
            ):
                before, started = cpu_seconds(pid), perf_counter()
                latencies, refused = await send(target, iter(data), in_flight)
                taken, spent = perf_counter() - started, cpu_seconds(pid) - before
                rate, each = len(data) / taken, spent / len(data)
                found.append(Line(what, in_flight, rate, latencies, each, refused))
    return found


def table(found: list[Line]) -> Table:
    """The lines; a ratio is to the echo with as many in flight."""
    result = Table(title="server CPU: of the server process, without its workers")
    for heading in ("in flight", "what", "calls/s", "of echo", "p50 ms", "p99 ms",
                    "server CPU us", "of echo", "refused"):  # fmt: skip
        result.add_column(heading, justify="right")
    for line in found:
        echo = next(e for e in found if e.what == "echo" and e.in_flight == line.in_flight)
        p99 = statistics.quantiles(line.latencies, n=100, method="inclusive")[98]
        result.add_row(
            str(line.in_flight), line.what, f"{line.rate:,.0f}", f"{line.rate / echo.rate:.2f}",
            f"{statistics.median(line.latencies) * 1e3:.2f}", f"{p99 * 1e3:.2f}",
            f"{line.cpu * 1e6:,.0f}", f"{line.cpu / echo.cpu:.2f}", str(line.refused),
        )  # fmt: skip
    return result


def memory_megabytes(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def open_files(pid: int) -> int:
    """How many files and connections a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def many_hits(servers: Servers, hits: int, say: Callable[[str], None]) -> None:
    """Print the server's memory at the start, ten times on the way, and at the end."""
    requests = Requests()
    async with grpc.aio.insecure_channel(servers.lazyfx, options=_OPTIONS) as channel:
        call: Any = channel.unary_unary(COMPILE)
        await requests.prepare(call)
        say(f"{0:>12,} hits: {memory_megabytes(servers.pids[0]):.1f} MB")
        done = 0
        for part in range(1, 11):
            count = hits * part // 10 - done
            _, refused = await send(call, iter([requests.hit] * count), 64)
            done += count
            say(f"{done:>12,} hits: {memory_megabytes(servers.pids[0]):.1f} MB, {refused} refused")


async def many_graphs(servers: Servers, graphs: int, say: Callable[[str], None]) -> None:
    """As `many_hits`, for misses: what the server remembers of graphs is bounded."""
    requests = Requests()
    async with grpc.aio.insecure_channel(servers.lazyfx, options=_OPTIONS) as channel:
        call: Any = channel.unary_unary(COMPILE)
        await requests.prepare(call)
        say(f"{0:>12,} graphs: {memory_megabytes(servers.pids[0]):.1f} MB")
        done = refusals = 0
        for part in range(1, _PARTS + 1):
            for _ in range((graphs * part // _PARTS - done) // _MISSES_AT_ONCE):
                _, refused = await send(call, iter(requests.misses(_MISSES_AT_ONCE)), 16)
                done, refusals = done + _MISSES_AT_ONCE, refusals + refused
            megabytes = memory_megabytes(servers.pids[0])
            say(f"{done:>12,} graphs: {megabytes:.1f} MB, {refusals} refused")


async def soak(servers: Servers, seconds: float, say: Callable[[str], None]) -> None:
    """Mixed load at a low rate; print memory, open files and latency a dozen times."""
    requests = Requests()
    pid = servers.pids[0]
    async with grpc.aio.insecure_channel(servers.lazyfx, options=_OPTIONS) as channel:
        call: Any = channel.unary_unary(COMPILE)
        await requests.prepare(call)
        for part in range(_SOAK_SAMPLES):
            latencies: list[float] = []
            refused, end = 0, perf_counter() + seconds / _SOAK_SAMPLES
            while perf_counter() < end:
                more, no = await send(call, iter(requests.mixed(_MISS_EVERY)), 4)
                latencies, refused = latencies + more, refused + no
                await asyncio.sleep(_MISS_EVERY / _SOAK_RATE)
            say(
                f"{(part + 1) * seconds / _SOAK_SAMPLES:7.0f} s: {len(latencies)} calls, "
                f"{refused} refused, p50 {statistics.median(latencies) * 1e3:.2f} ms, "
                f"{memory_megabytes(pid):.1f} MB, {open_files(pid)} files"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--calls", type=int, default=2000, help="calls of a line (default: 2000)")
    parser.add_argument("--hits", type=int, help="so many hits instead, with the server's memory")
    parser.add_argument("--graphs", type=int, help="so many misses instead, with the same")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="mixed load for so long")
    options = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 130)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as servers:
        if options.hits:
            asyncio.run(many_hits(servers, options.hits, console.print))
        elif options.graphs:
            asyncio.run(many_graphs(servers, options.graphs, console.print))
        elif options.soak:
            asyncio.run(soak(servers, options.soak, console.print))
        else:
            with apart(servers.pids):
                found = asyncio.run(lines(servers, options.calls, console.print))
            console.print(table(found))


if __name__ == "__main__":
    main()

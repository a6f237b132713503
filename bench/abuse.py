"""20 hostile callers beside a good one: how late its hits are, and what the server grows by.

    python -m bench.abuse --seconds 30

Each hostile caller sends the abuses of `bench.abuses` in an order of its own, again and again, and
large bodies that wait. Printed are the good caller's median and 99th percentile, quiet and under
attack, the growth of the server's memory, and the slowest answer of /healthz. Callers and server
share this machine's processors: on few cores the callers' own work is part of the numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import multiprocessing
import random
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import torch
from torch.fx import symbolic_trace

import lazyfx
from bench.abuses import ABUSES, MB
from bench.servers import running_lazyfx
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

CALLERS = 20
PROCESSES = 2
TARGET_RATIO = 5.0
TARGET_GROWTH = 1 << 30
TARGET_HEALTH_SECONDS = 1.0


@dataclass
class Measured:
    """What the good caller and the probe saw."""

    hits: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    memory: int = 0

    @property
    def p50(self) -> float:
        """Median seconds of a hit."""
        return statistics.median(self.hits)

    @property
    def p99(self) -> float:
        """99th percentile of the seconds of a hit."""
        return statistics.quantiles(self.hits, n=100)[98]


def waiting_body(number: int) -> bytes:
    """A request with a body of 30 MB that is no graph; it waits for a worker to find that out."""
    body = b"\xff" * (30 * MB) + number.to_bytes(4, "big")
    digest = graph_pb2.Digest(sha256=hashlib.sha256(body).digest(), size_bytes=len(body))
    graph = graph_pb2.Graph(format_version=1, body=body)
    return pb.CompileRequest(graph_digest=digest, graph=graph).SerializeToString()


def attack(address: str, seed: int, threads: int, seconds: float) -> None:
    """Send abuses from several threads, each with a connection of its own."""
    end = time.monotonic() + seconds
    # Built once: building them is the callers' work, not the server's.
    messages = [(method, make()) for method, make, _ in ABUSES.values()]
    messages.append(("Compile", waiting_body(seed)))

    def caller(number: int) -> None:
        order = random.Random(number).sample(messages, len(messages))
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(address, options) as channel:
            while time.monotonic() < end:
                for method, data in order:
                    path = f"/lazyfx.v1.GraphCompiler/{method}"
                    with contextlib.suppress(grpc.RpcError):
                        if method == "GetArtifact":
                            list(channel.unary_stream(path, None, None)(data, timeout=30))
                        else:
                            channel.unary_unary(path, None, None)(data, timeout=30)
                    if time.monotonic() >= end:
                        return

    callers = [threading.Thread(target=caller, args=(100 * seed + i,)) for i in range(threads)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * 4096


async def watch(address: str, health: str, pid: int, seconds: float) -> Measured:
    """Make hits, one after the other, and ask /healthz now and then."""
    measured = Measured()
    module = symbolic_trace(lambda x: torch.relu(x) + torch.relu(x))
    end = time.monotonic() + seconds

    def probe() -> float:
        begin = time.perf_counter()
        with urllib.request.urlopen(health, timeout=60) as answer:
            answer.read()
        return time.perf_counter() - begin

    async def probing() -> None:
        while time.monotonic() < end:
            measured.probes.append(await asyncio.to_thread(probe))
            measured.memory = max(measured.memory, resident(pid))
            await asyncio.sleep(0.2)

    async with lazyfx.connect_async(address) as client:
        for _ in range(20):
            await client.compile(module, ["dead_code_elimination"])
        probes = asyncio.ensure_future(probing())
        while time.monotonic() < end:
            begin = time.perf_counter()
            await client.compile(module, ["dead_code_elimination"])
            measured.hits.append(time.perf_counter() - begin)
            await asyncio.sleep(0.005)
        await probes
    return measured


def main() -> None:
    """Measure, print, and say whether the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    seconds = parser.parse_args().seconds
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as store, running_lazyfx(Path(store)) as server:
        health = server.metrics.replace("/metrics", "/healthz")
        quiet = asyncio.run(watch(server.address, health, server.pid, seconds / 3))
        threads = CALLERS // PROCESSES
        attackers = [
            context.Process(target=attack, args=(server.address, i + 1, threads, seconds + 10))
            for i in range(PROCESSES)
        ]
        for each in attackers:
            each.start()
        time.sleep(8)  # they build their messages
        loud = asyncio.run(watch(server.address, health, server.pid, seconds))
        for each in attackers:
            each.join()
    growth, ratio = loud.memory - quiet.memory, loud.p99 / quiet.p99
    slowest = max(loud.probes)
    sys.stdout.write(
        f"hits: quiet {len(quiet.hits)}, p50 {quiet.p50 * 1e3:.2f} ms, p99 {quiet.p99 * 1e3:.2f} ms"
        f"; under attack {len(loud.hits)}, p50 {loud.p50 * 1e3:.2f} ms, p99 {loud.p99 * 1e3:.2f} ms"
        f"\np99 ratio {ratio:.1f} (target {TARGET_RATIO:g})"
        f"\nmemory grew by {growth / MB:.0f} MB (target {TARGET_GROWTH / MB:.0f})"
        f"\nslowest /healthz {slowest:.2f} s (target {TARGET_HEALTH_SECONDS:g})\n"
    )


if __name__ == "__main__":
    main()

"""20 hostile callers next to a well-behaved one: its latency, and the server's memory growth.

    python -m bench.abuse [--seconds 120] [--abuse NAME ...] [--json FILE]

Quiet and abused windows alternate on one server. In an abused window, each of 20 callers, with its
own connection, repeatedly sends every abuse of `bench.abuses` in its own order. Over all windows,
each caller completes the whole list at least once, or the result says that it did not. The output
has the good caller's median and 99th percentile, per window and as quartiles over windows, the
growth of the server's memory (its peak, minus the peak of the first quiet window), and the slowest
response of /healthz. At the end, 200 slow connections are opened to the metrics port while /healthz
is probed.

The hostile callers represent callers on other machines. Here they share the server's processors, so
they run in one process with low priority (nice 10) and mostly use what the server and the good
caller leave idle. The rest of their work is included in the numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import grpc

from bench.abuses import ABUSES, MB, send
from bench.rounds import spread
from bench.servers import Lazyfx, running_lazyfx

CALLERS = 20
SLOW_CONNECTIONS = 200
WINDOWS = 5
TARGET_RATIO = 5.0
TARGET_GROWTH = 1 << 30
TARGET_HEALTH_SECONDS = 1.0
_PAUSE_SECONDS = 0.005
_PROBE_SECONDS = 0.2
_SETTLE_SECONDS = 15.0
_PRIORITY = 10


@dataclass
class Window:
    """The measurements of the good caller and of the probe in one window."""

    hits: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    memory: int = 0

    @property
    def p50(self) -> float:
        """Median milliseconds of a hit."""
        return 1e3 * statistics.median(self.hits)

    @property
    def p99(self) -> float:
        """99th percentile of the milliseconds of a hit."""
        return 1e3 * statistics.quantiles(self.hits, n=100)[98]


class Callers:
    """The hostile callers, in a separate process that pauses between windows."""

    def __init__(self, address: str, names: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._go, self._end, self._built = context.Event(), context.Event(), context.Event()
        self._busy = context.Value("i", 0)
        self._sent: Any = context.Queue()
        self._process = context.Process(
            target=_attack,
            args=(address, names, self._go, self._end, self._built, self._busy, self._sent),
        )
        self._process.start()
        self._built.wait(120)

    @contextlib.contextmanager
    def attacking(self) -> Any:
        """Let them send until the end of the block, and let calls in progress finish."""
        self._go.set()
        try:
            yield
        finally:
            self._go.clear()
            end = time.monotonic() + _SETTLE_SECONDS
            while self._busy.value and time.monotonic() < end:
                time.sleep(0.1)

    def stop(self) -> tuple[list[int], Counter[str]]:
        """Stop them. Returns each one's number of finished abuses, and the calls by status."""
        self._end.set()
        self._go.set()
        kinds, statuses = self._sent.get(timeout=120)
        self._process.join(30)
        return kinds, statuses


def _attack(
    address: str,
    names: Sequence[str],
    go: Event,
    end: Event,
    built: Event,
    busy: Any,
    sent: Any,
) -> None:
    os.nice(_PRIORITY)
    # Built once: building them costs the callers, not the server.
    made = [(name, ABUSES[name], ABUSES[name].make()) for name in names]
    statuses: Counter[str] = Counter()
    kinds: list[set[str]] = [set() for _ in range(CALLERS)]

    def caller(number: int) -> None:
        order = random.Random(number).sample(made, len(made))
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(address, options) as channel:
            while not end.is_set():
                for name, abuse, messages in order:
                    go.wait()
                    if end.is_set():
                        return
                    with busy.get_lock():
                        busy.value += 1
                    try:
                        send(channel, abuse, messages)
                        status = "OK"
                    except grpc.RpcError as error:
                        status = error.code().name  # type: ignore[attr-defined]
                    with busy.get_lock():
                        busy.value -= 1
                    kinds[number].add(name)
                    statuses[status] += 1

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(CALLERS)]
    for each in callers:
        each.start()
    built.set()
    for each in callers:
        each.join()
    sent.put(([len(kind) for kind in kinds], statuses))


def resident(pid: int) -> int:
    """The resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * 4096


def probe(url: str) -> float:
    """Seconds until /healthz answers."""
    begin = time.perf_counter()
    with urllib.request.urlopen(url, timeout=60) as answer:
        answer.read()
    return time.perf_counter() - begin


async def watch(server: Lazyfx, health: str, seconds: float) -> Window:
    """Make hits one after the other, and probe /healthz now and then."""
    # Imported here: the process of the hostile callers needs neither.
    import torch
    from torch.fx import symbolic_trace

    import lazyfx

    window = Window()
    module = symbolic_trace(lambda x: torch.relu(x) + torch.relu(x))
    end = time.monotonic() + seconds

    async def probing() -> None:
        while time.monotonic() < end:
            window.probes.append(await asyncio.to_thread(probe, health))
            window.memory = max(window.memory, resident(server.pid))
            await asyncio.sleep(_PROBE_SECONDS)

    async with lazyfx.connect_async(server.address) as client:
        for _ in range(20):
            await client.compile(module, ["dead_code_elimination"])
        probes = asyncio.ensure_future(probing())
        while time.monotonic() < end:
            begin = time.perf_counter()
            await client.compile(module, ["dead_code_elimination"])
            window.hits.append(time.perf_counter() - begin)
            await asyncio.sleep(_PAUSE_SECONDS)
        await probes
    return window


def slow_connections(health: str) -> float:
    """The slowest of ten probes while 200 connections never finish their requests."""
    host, _, port = health.removeprefix("http://").partition("/")[0].rpartition(":")
    with contextlib.ExitStack() as held:
        for _ in range(SLOW_CONNECTIONS):
            connection = held.enter_context(socket.create_connection((host, int(port)), 10))
            connection.sendall(b"GET /metr")
        return max(probe(health) for _ in range(10))


def measure(server: Lazyfx, seconds: float, names: Sequence[str]) -> dict[str, Any]:
    """Alternate the windows. Returns their measurements."""
    health = server.metrics.replace("/metrics", "/healthz")
    each = seconds / WINDOWS / 4
    quiet, abused = [asyncio.run(watch(server, health, each))], []
    callers = Callers(server.address, names)
    for _ in range(WINDOWS):
        with callers.attacking():
            abused.append(asyncio.run(watch(server, health, 3 * each)))
        quiet.append(asyncio.run(watch(server, health, each)))
    kinds, statuses = callers.stop()
    peak = max(window.memory for window in abused)
    beside = [(a.p99 + b.p99) / 2 for a, b in itertools.pairwise(quiet)]
    return {
        "quiet_p50_ms": spread([w.p50 for w in quiet]),
        "quiet_p99_ms": spread([w.p99 for w in quiet]),
        "abused_p50_ms": spread([w.p50 for w in abused]),
        "abused_p99_ms": spread([w.p99 for w in abused]),
        "ratio": spread([w.p99 / p99 for w, p99 in zip(abused, beside, strict=True)]),
        "hits": [sum(len(w.hits) for w in quiet), sum(len(w.hits) for w in abused)],
        "growth_mb": (peak - quiet[0].memory) / MB,
        "kept_mb": (resident(server.pid) - quiet[0].memory) / MB,
        "healthz_s": max(max(window.probes) for window in abused),
        "slow_connections_healthz_s": slow_connections(health),
        "kinds": len(names),
        "kinds_of_each_caller": [min(kinds), max(kinds)],
        "statuses": dict(statuses),
    }


def main() -> None:
    """Measure, and print the results and whether the targets are met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="total seconds of all windows")
    parser.add_argument("--abuse", action="append", choices=list(ABUSES), help="only this abuse")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as store, running_lazyfx(Path(store)) as server:
        seen = measure(server, arguments.seconds, arguments.abuse or list(ABUSES))
    seen |= {"load_before": load, "processors": os.cpu_count(), "commit": _commit()}
    if arguments.json:
        arguments.json.write_text(json.dumps(seen, indent=1), "utf-8")
    for name, value in seen.items():
        sys.stdout.write(f"{name:28} {_shown(value)}\n")
    for name, value, target in (
        ("p99 under attack / quiet", seen["ratio"][2], TARGET_RATIO),
        ("MB of growth", seen["growth_mb"], TARGET_GROWTH / MB),
        ("seconds of /healthz", seen["healthz_s"], TARGET_HEALTH_SECONDS),
        (
            "the same, with slow connections",
            seen["slow_connections_healthz_s"],
            TARGET_HEALTH_SECONDS,
        ),
        ("kinds that a caller missed", seen["kinds"] - seen["kinds_of_each_caller"][0], 0),
    ):
        verdict = "met" if value <= target else "missed"
        sys.stdout.write(f"{name:28} {value:.2f} (target {target:g}): {verdict}\n")


def _shown(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return "  ".join(_shown(each) for each in value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    main()

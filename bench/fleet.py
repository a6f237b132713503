"""A fleet of up to 100,000 ranks that start together, simulated from measured service times.

    python -m bench.fleet                 # measure, check against 200 real clients, simulate
    python -m bench.fleet --assume FILE   # simulate again with service times of an earlier run

All ranks ask for the same graph within a few seconds. One compile serves the fleet: the first
request leads, the others join it, those of other replicas find the result in the shared store at
their next look. Then each rank fetches the artifact. A replica is one event loop: a queue that is
served first come, first served. Ranks have their own machines; in the check they share one process,
which is a queue as well.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import json
import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final

import grpc.aio
from rich.console import Console
from rich.table import Table

from bench.cores import apart
from bench.graphs import gpt2_cases
from bench.miss import changes
from bench.raw_hits import COMPILE, cpu_seconds
from bench.servers import Servers, running
from lazyfx.calls.channel import _OPTIONS
from lazyfx.capture.preparing import Preparer
from lazyfx.shared.missing import BLOB_SUBJECT
from lazyfx.shared.pass_specs import normalize
from lazyfx.v1 import compiler_pb2 as pb

GET_ARTIFACT: Final = "/lazyfx.v1.GraphCompiler/GetArtifact"
CLIENTS: Final = 200
_IN_FLIGHT: Final = 32
_CALLS: Final = 640
_FLEETS: Final = 3
_TARGET: Final = 0.15


@dataclass(frozen=True)
class Times:
    """Measured seconds.

    Attributes:
        compile: From a miss to its answer.
        ask: A replica's time for a compile request that joins or hits, with the graph in it.
        fetch: A replica's time for the artifact.
        client_ask: A client's time for the request.
        client_fetch: A client's time for the artifact.
        artifact_bytes: Bytes of the artifact.
    """

    compile: float
    ask: float
    fetch: float
    client_ask: float
    client_fetch: float
    artifact_bytes: int


@dataclass(frozen=True)
class Result:
    """What a fleet saw.

    Attributes:
        seconds: Until the last rank has its artifact.
        median: Until the median rank has.
        busy: The busiest replica's fraction of that time.
        sent: Bytes of artifacts.
    """

    seconds: float
    median: float
    busy: float
    sent: int


class _Queue:
    """A server of one thing at a time, first come, first served."""

    def __init__(self) -> None:
        self._free = 0.0
        self.busy = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """When work that arrives now is done."""
        self._free = max(self._free, now) + seconds
        self.busy += seconds
        return self._free


def simulate(
    ranks: int,
    replicas: int,
    times: Times,
    *,
    spread: float,
    look: float = 0.5,
    seed: int = 1,
    one_client: bool = False,
) -> Result:
    """Simulate a fleet.

    Args:
        ranks: How many ranks.
        replicas: How many replicas share them evenly.
        times: Service times.
        spread: Seconds within which ranks ask.
        look: Seconds between two looks of a waiting replica into the shared store.
        seed: Of arrivals and looks.
        one_client: All ranks share one process, as in the check.
    """
    fleet = _Fleet(replicas, times, look, random.Random(seed), one_client=one_client)
    for rank in range(ranks):
        fleet.at(fleet.dice.uniform(0, spread), fleet.ask, rank)
    return fleet.run()


class _Fleet:
    """The state of one simulation; each method is an event, with its time."""

    def __init__(
        self, replicas: int, times: Times, look: float, dice: random.Random, *, one_client: bool
    ) -> None:
        self.dice = dice
        self._times = times
        self._look = look
        self._servers = [_Queue() for _ in range(replicas)]
        self._client = _Queue() if one_client else None
        self._waiting: list[list[int]] = [[] for _ in self._servers]
        self._have = [False] * replicas
        self._leads = False
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[int, float], None], int]] = []
        self._ends: list[float] = []

    def at(self, time: float, event: Callable[[int, float], None], subject: int) -> None:
        """Let an event happen to a rank or a replica."""
        heapq.heappush(self._events, (time, next(self._numbers), event, subject))

    def run(self) -> Result:
        """Let everything happen."""
        while self._events:
            time, _, event, subject = heapq.heappop(self._events)
            event(subject, time)
        seconds = max(self._ends)
        return Result(
            seconds,
            statistics.median(self._ends),
            max(server.busy for server in self._servers) / seconds,
            len(self._ends) * self._times.artifact_bytes,
        )

    def ask(self, rank: int, now: float) -> None:
        """A rank sends its request."""
        self.at(self._by_client(now, self._times.client_ask / 2), self._asked, rank)

    def _asked(self, rank: int, now: float) -> None:
        server = self._servers[self._of(rank)]
        self.at(server.serve(now, self._times.ask), self._joined, rank)

    def _joined(self, rank: int, now: float) -> None:
        where = self._of(rank)
        if self._have[where]:
            self._fetch(rank, now)
            return
        self._waiting[where].append(rank)
        if not self._leads:
            self._leads = True
            self.at(now + self._times.compile, self._compiled, where)

    def _compiled(self, leader: int, now: float) -> None:
        for where in range(len(self._servers)):
            seen = now if where == leader else now + self.dice.uniform(0, self._look)
            self.at(seen, self._found, where)

    def _found(self, where: int, now: float) -> None:
        self._have[where] = True
        for rank in self._waiting[where]:
            self._fetch(rank, now)
        self._waiting[where].clear()

    def _fetch(self, rank: int, now: float) -> None:
        seconds = (self._times.client_ask + self._times.client_fetch) / 2
        self.at(self._by_client(now, seconds), self._fetched, rank)

    def _fetched(self, rank: int, now: float) -> None:
        done = self._servers[self._of(rank)].serve(now, self._times.fetch)
        self.at(done, self._received, rank)

    def _received(self, _rank: int, now: float) -> None:
        self._ends.append(self._by_client(now, self._times.client_fetch / 2))

    def _of(self, rank: int) -> int:
        return rank % len(self._servers)

    def _by_client(self, now: float, seconds: float) -> float:
        return now + seconds if self._client is None else self._client.serve(now, seconds)


class Real:
    """Raw clients of a real server, which send prepared bytes.

    Args:
        servers: The servers.
    """

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._case = gpt2_cases()[1]
        self._change = changes(self._case.module)

    def _new_request(self) -> bytes:
        """A request with a graph that the server has not seen."""
        next(self._change)
        preparer = Preparer()
        passes = normalize(["dead_code_elimination", "common_subexpression_elimination"])
        prepared = preparer.prepare(self._case.module, passes, fresh=True)
        subject = f"{BLOB_SUBJECT}{prepared.encoded.digest.hex()}"
        request, _ = preparer.provide_missing(prepared, prepared.requests.whole, [subject])
        return request.SerializeToString()

    async def times(self) -> Times:
        """Measure the service times."""
        async with grpc.aio.insecure_channel(self._servers.lazyfx, options=_OPTIONS) as channel:
            ask: Any = channel.unary_unary(COMPILE)
            fetch: Any = channel.unary_stream(GET_ARTIFACT)
            compiles = []
            for _ in range(5):
                request, started = self._new_request(), perf_counter()
                answer = await ask(request)
                compiles.append(perf_counter() - started)
            wanted = _artifact(answer)
            size = await _read(fetch(wanted))
            asks = await self._costs(lambda: ask(request))
            fetches = await self._costs(lambda: _read(fetch(wanted)))
        return Times(statistics.median(compiles), asks[0], fetches[0], asks[1], fetches[1], size)

    async def _costs(self, call: Callable[[], Any]) -> tuple[float, float]:
        """Seconds of server and client for one call when both are kept busy.

        CPU times, stretched by what other processes took from both.
        """

        async def several() -> None:
            for _ in range(_CALLS // _IN_FLIGHT):
                await call()

        pid = self._servers.pids[0]
        started, ours, theirs = perf_counter(), process_time(), cpu_seconds(pid)
        await asyncio.gather(*(several() for _ in range(_IN_FLIGHT)))
        ours, theirs = process_time() - ours, cpu_seconds(pid) - theirs
        stretched = max(1.0, (perf_counter() - started) / max(ours, theirs))
        return theirs * stretched / _CALLS, ours * stretched / _CALLS

    async def fleet(self, spread: float) -> float:
        """Seconds until all of 200 real clients have the artifact of a new graph."""
        request, dice = self._new_request(), random.Random(1)
        async with grpc.aio.insecure_channel(self._servers.lazyfx, options=_OPTIONS) as channel:
            ask: Any = channel.unary_unary(COMPILE)
            fetch: Any = channel.unary_stream(GET_ARTIFACT)

            async def rank(delay: float) -> None:
                await asyncio.sleep(delay)
                await _read(fetch(_artifact(await ask(request))))

            started = perf_counter()
            await asyncio.gather(*(rank(dice.uniform(0, spread)) for _ in range(CLIENTS)))
            return perf_counter() - started


def _artifact(answer: bytes) -> bytes:
    key = pb.CompileResponse.FromString(answer).module_key
    return pb.GetArtifactRequest(module_key=key, kind=pb.ARTIFACT_KIND_GRAPH).SerializeToString()


async def _read(parts: Any) -> int:
    return sum([len(part) async for part in parts])


async def check(real: Real, rounds: int) -> tuple[Times, list[tuple[float, float]]]:
    """Times, and (simulated, real) seconds of 200 clients, measured in turns.

    A round measures the times before and after a few real runs, of which the median counts.
    """
    spread = 0.2
    measured: list[Times] = []
    pairs = []
    for _ in range(rounds):
        before = await real.times()
        seconds = statistics.median([await real.fleet(spread) for _ in range(_FLEETS)])
        after = await real.times()
        times = Times(*(statistics.mean(pair) for pair in zip(_values(before), _values(after))))  # type: ignore[arg-type]  # noqa: B905
        simulated = simulate(CLIENTS, 1, times, spread=spread, one_client=True).seconds
        measured.append(times)
        pairs.append((simulated, seconds))
    middle = Times(*map(statistics.median, zip(*map(_values, measured))))  # type: ignore[arg-type]  # noqa: B905
    return replace(middle, artifact_bytes=int(middle.artifact_bytes)), pairs


def _values(times: Times) -> list[float]:
    return list(asdict(times).values())


def table(times: Times, spread: float) -> Table:
    """Fleets of growing size, on 1 to 16 replicas."""
    facts = ", ".join(
        f"{name} {value * 1e3:.3g} ms" if name != "artifact_bytes" else f"artifact {value:,} B"
        for name, value in asdict(times).items()
    )
    result = Table(title=f"{facts}; ranks start within {spread:g} s", title_justify="left")
    for heading in ("ranks", "replicas", "all have it, s", "median, s", "busiest", "MB sent"):
        result.add_column(heading, justify="right")
    for ranks in (100, 1_000, 10_000, 100_000):
        for replicas in (1, 4, 16):
            found = simulate(ranks, replicas, times, spread=spread)
            result.add_row(
                f"{ranks:,}", str(replicas), f"{found.seconds:.2f}", f"{found.median:.2f}",
                f"{found.busy:.0%}", f"{found.sent / 1e6:,.0f}",
            )  # fmt: skip
    return result


def main() -> None:
    """Measure, check, simulate, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="checks against real clients")
    parser.add_argument("--spread", type=float, default=5.0, help="seconds within which ranks ask")
    parser.add_argument("--json", type=Path, help="write the service times to this file")
    parser.add_argument("--assume", type=Path, help="use the service times of this file")
    options = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 130)
    if options.assume:
        times = Times(**json.loads(options.assume.read_text()))
    else:
        with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as servers:
            real = Real(servers)
            with apart(servers.pids):
                times, pairs = asyncio.run(check(real, options.rounds))
        for simulated, seconds in pairs:
            console.print(
                f"{CLIENTS} clients: simulated {simulated:.3f} s, real {seconds:.3f} s, "
                f"{simulated / seconds - 1:+.0%}"
            )
        off = statistics.median(simulated / seconds for simulated, seconds in pairs) - 1
        verdict = "met" if abs(off) <= _TARGET else "missed"
        console.print(f"median difference {off:+.0%}; target {_TARGET:.0%}: {verdict}")
    if options.json:
        options.json.write_text(json.dumps(asdict(times)) + "\n")
    console.print(table(times, options.spread))


if __name__ == "__main__":
    main()

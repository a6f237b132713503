"""`python -m chaos`: load on three replicas while faults happen, and the books afterwards."""

from __future__ import annotations

import argparse
import collections
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ["LAZYFX_KNOWN_SERVERS"] = os.devnull

import nursery

import lazyfx
from chaos import reconciling
from chaos.cluster import Cluster, Replica
from chaos.faults import FAULTS, Fault, Scene
from chaos.link import Link
from chaos.load import Books, Load, graph_of
from lazyfx.errors import ServiceError

_CLIENTS: Final = 6
_RECOVERY_SECONDS: Final = 150.0
_SECONDS: Final = 480.0
_SHORT_SECONDS: Final = 25.0
_CALM_JOBS: Final = 90
_CALM_SECONDS: Final = 60.0
_CALM_NEW: Final = 1_000_000


def main() -> int:
    """Run the faults, print what happened and what is wrong; the status is 1 if anything is."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000, help="at most so many (default: 5000)")
    parser.add_argument(
        "--seconds", type=float, default=None,
        help=f"no job and no fault begins later (default: {_SECONDS:g}, short {_SHORT_SECONDS:g})",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=None, help="replays the choices of a run")
    parser.add_argument("--short", action="store_true", help="each fault at most once")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    with tempfile.TemporaryDirectory(prefix="lazyfx-chaos-") as folder, nursery.nurseries():
        seconds = options.seconds or (_SHORT_SECONDS if options.short else _SECONDS)
        wrong = run(Path(folder), seed, options.jobs, seconds, short=options.short)
    for line in wrong:
        print(f"WRONG: {line}", flush=True)
    print("everything adds up" if not wrong else f"{len(wrong)} things are wrong", flush=True)
    return 1 if wrong else 0


def run(folder: Path, seed: int, jobs: int, seconds: float, *, short: bool) -> list[str]:
    """Load, faults, and the books.

    Args:
        folder: Empty; for stores, keys and temporary files.
        seed: Of all choices.
        jobs: How many jobs at most; faults go on until they are done.
        seconds: No job and no fault begins later than so long after the start of the load.
        short: Each fault at most once; the load ends with the last one.

    Returns:
        What is wrong; empty if everything adds up.
    """
    say = _Clock()
    say(f"seed {seed}")
    books = Books()
    with Cluster(folder).running() as cluster:
        link = Link(cluster.linked.port)
        try:
            addresses = [
                link.address if replica is cluster.linked else f"127.0.0.1:{replica.port}"
                for replica in cluster.replicas
            ]
            scene = Scene(cluster, link, random.Random(seed), 1.0 if short else 3.0)
            load = Load(addresses, _CLIENTS, seed, books, jobs=jobs, seconds=seconds)
            say("load begins")
            load.start()
            try:
                _break_things(scene, books, jobs, seconds, say, once=short)
            finally:
                load.stop()
            say(f"load ends: {books.asked} jobs, slowest {books.slowest:.1f} s")
            say(f"outcomes: {dict(books.outcomes)}")
            wrong = reconciling.of_books(books) + _calm(cluster, addresses, seed, say)
        finally:
            link.close()
        for replica in cluster.replicas:
            wrong += reconciling.of_ledger(replica) + reconciling.of_logs(replica)
            if status := replica.drain():
                wrong.append(f"{replica.name} ended with status {status}")
        wrong += reconciling.of_processes(cluster) + reconciling.of_files(cluster, scene.damaged)
    return wrong


def _break_things(
    scene: Scene, books: Books, jobs: int, seconds: float, say: _Clock, *, once: bool
) -> None:
    """Faults in random order, again and again, each after the fleet has recovered."""
    end = time.monotonic() + seconds
    faults: list[Fault] = []
    while True:
        if not faults:
            faults = list(FAULTS)
            scene.dice.shuffle(faults)
        if time.monotonic() >= end or books.asked >= jobs:
            left = ", ".join(fault.__name__ for fault in faults)
            say(f"no time for {left}" if once else "time or jobs are used up")
            return
        fault = faults.pop()
        say(f"{fault.__name__} ...")
        said = fault(scene)
        for replica in scene.cluster.replicas:
            _wait_until_it_serves(replica)
        say(f"{said}; recovered; {books.asked} jobs so far")
        if once and not faults:
            return


def _wait_until_it_serves(replica: Replica) -> None:
    """Wait until a replica compiles a graph that it has never seen.

    Raises:
        RuntimeError: It does not recover.
    """
    deadline = time.monotonic() + _RECOVERY_SECONDS
    with lazyfx.connect(f"127.0.0.1:{replica.port}", timeout=10) as client:
        while True:
            try:
                client.compile(graph_of(time.monotonic_ns()), skip_cache_lookup=True)
            except ServiceError as error:
                if time.monotonic() > deadline:
                    log = "".join(replica.log[-20:])
                    raise RuntimeError(f"{replica.name} did not recover: {error}\n{log}") from error
                time.sleep(0.1)
            else:
                return


def _wait_until_it_uses_redis(replica: Replica) -> None:
    """Wait until a replica has noticed that Redis answers again.

    Raises:
        RuntimeError: It does not notice.
    """
    deadline = time.monotonic() + _RECOVERY_SECONDS
    while not replica.metric("lazyfx_store_in_use", tier="redis"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{replica.name} does not use Redis:\n{''.join(replica.log[-20:])}")
        time.sleep(0.1)


def _calm(cluster: Cluster, addresses: Sequence[str], seed: int, say: _Clock) -> list[str]:
    """Without faults, every job is answered and counted once, every graph compiled once a store."""
    replicas = cluster.replicas
    for replica in cluster.on_redis:
        _wait_until_it_uses_redis(replica)
    held = [(replica.open_files(), replica.threads()) for replica in replicas]
    before = sum(map(reconciling.lookups, replicas))
    flights = collections.Counter(reconciling.flights(cluster.on_redis))
    books = Books()
    load = Load(
        addresses, _CLIENTS, seed + 1, books,
        jobs=_CALM_JOBS, seconds=_CALM_SECONDS, new_from=_CALM_NEW,
    )  # fmt: skip
    load.start()
    load.wait()
    counted = sum(map(reconciling.lookups, replicas)) - before
    flights = collections.Counter(reconciling.flights(cluster.on_redis)) - flights
    say(f"calm: {books.asked} jobs, {dict(books.outcomes)}; {counted:g} lookups counted")
    say(f"calm: flights of the replicas on Redis: {dict(flights)}")
    wrong = reconciling.of_books(books)
    if books.answered != books.asked:
        wrong.append(f"without faults, {books.asked - books.answered} jobs were refused")
    if counted != books.answered:
        wrong.append(f"{books.answered} jobs were answered, and {counted:g} lookups were counted")
    wrong += reconciling.of_misses(books, addresses[:1], 0)
    wrong += reconciling.of_misses(books, addresses[1:], reconciling.repeated(flights))
    for replica, (files, threads) in zip(replicas, held, strict=True):
        wrong += reconciling.of_resources(replica, files, threads)
    return wrong


class _Clock:
    """Prints lines with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"{time.monotonic() - self._started:8.2f} s  {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m chaos`: load on two replicas while faults happen, and the books afterwards."""

from __future__ import annotations

import argparse
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
_CALM_JOBS: Final = 60


def main() -> int:
    """Run the faults, print what happened and what is wrong; the status is 1 if anything is."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000, help="jobs in all (default: 5000)")
    parser.add_argument("--seconds", type=float, default=480.0, help="at most this long under load")
    parser.add_argument("--seed", type=int, default=None, help="replays the choices of a run")
    parser.add_argument("--short", action="store_true", help="each fault once, about 40 s")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    with tempfile.TemporaryDirectory(prefix="lazyfx-chaos-") as folder, nursery.nurseries():
        wrong = run(Path(folder), seed, options.jobs, options.seconds, short=options.short)
    for line in wrong:
        print(f"WRONG: {line}", flush=True)
    print("everything adds up" if not wrong else f"{len(wrong)} things are wrong", flush=True)
    return 1 if wrong else 0


def run(folder: Path, seed: int, jobs: int, seconds: float, *, short: bool) -> list[str]:
    """Load, faults, and the books.

    Args:
        folder: Empty; for stores, keys and temporary files.
        seed: Of all choices.
        jobs: Jobs in all; faults go on until they are done.
        seconds: Maximum time under load.
        short: Each fault once instead, whatever the number of jobs.

    Returns:
        What is wrong; empty if everything adds up.
    """
    say = _Clock()
    say(f"seed {seed}")
    books = Books()
    with Cluster(folder).running() as cluster:
        a, b = cluster.replicas
        link = Link(b.port)
        try:
            addresses = [f"127.0.0.1:{a.port}", link.address]
            scene = Scene(cluster, link, random.Random(seed), 1.0 if short else 3.0)
            load = Load(addresses, _CLIENTS, seed, books, sys.maxsize if short else jobs)
            say("load begins")
            load.start()
            try:
                _break_things(
                    scene, books, sys.maxsize if short else jobs, seconds, say, once=short
                )
            finally:
                load.stop()
            say(f"load ends: {books.asked} jobs, slowest {books.slowest:.1f} s")
            say(f"outcomes: {dict(books.outcomes)}")
            wrong = reconciling.of_books(books) + _calm(cluster.replicas, addresses, seed, say)
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
    while time.monotonic() < end and books.asked < jobs:
        if not faults:
            faults = list(FAULTS)
            scene.dice.shuffle(faults)
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


def _calm(
    replicas: Sequence[Replica], addresses: Sequence[str], seed: int, say: _Clock
) -> list[str]:
    """Without faults, every job is answered, and counted exactly once."""
    held = [(replica.open_files(), replica.threads()) for replica in replicas]
    before = sum(map(reconciling.lookups, replicas))
    books = Books()
    load = Load(addresses, _CLIENTS, seed + 1, books, _CALM_JOBS)
    load.start()
    load.wait()
    counted = sum(map(reconciling.lookups, replicas)) - before
    say(f"calm: {books.asked} jobs, {dict(books.outcomes)}; {counted:g} lookups counted")
    wrong = reconciling.of_books(books)
    if books.answered != books.asked:
        wrong.append(f"without faults, {books.asked - books.answered} jobs were refused")
    if counted != books.answered:
        wrong.append(f"{books.answered} jobs were answered, and {counted:g} lookups were counted")
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

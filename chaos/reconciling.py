"""The books after the load: does everything add up, and is nothing left behind?"""

from __future__ import annotations

import asyncio
import collections
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import lazyfx
from chaos.cluster import Cluster, Replica
from chaos.load import Books
from lazyfx_server.store.disk_store import DiskStore
from lazyfx_server.store.verified_store import VerifiedStore
from lazyfx_server.telemetry.labels import FLEET_OUTCOMES

# Connections of clients, and threads that Python starts when they are first needed.
_SPARE: Final = 24
_END_SECONDS: Final = 30.0
_SHARED_FOLDERS: Final = ("torchinductor_", "lazyfx-workers-", "lazyfx-native-")


def lookups(replica: Replica) -> float:
    """The compile requests that a replica has counted."""
    return replica.metric("lazyfx_lookups_total")


def flights(replicas: Sequence[Replica]) -> dict[str, int]:
    """How many compiles of replicas that share a Redis ended in each way."""
    name = "lazyfx_fleet_flights_total"
    return {
        outcome: sum(int(r.metric(name, stage="compile", outcome=outcome)) for r in replicas)
        for outcome in FLEET_OUTCOMES
    }


def repeated(flights: Mapping[str, int]) -> int:
    """How many of these may have repeated the work of another replica."""
    return sum(flights.get(outcome, 0) for outcome in ("hedged", "unleased", "outrun"))


def of_misses(books: Books, addresses: Sequence[str], excused: int) -> list[str]:
    """Graphs that replicas with one store have compiled more than once.

    Args:
        books: Of a time without faults.
        addresses: Of these replicas.
        excused: How many compiles were repeated because Redis was too slow to answer.
    """
    misses: collections.Counter[int] = collections.Counter()
    for (address, graph), count in books.misses.items():
        if address in addresses:
            misses[graph] += count
    again = {graph: count for graph, count in misses.items() if count > 1}
    if sum(again.values()) - len(again) > excused:
        return [f"compiled more than once without a fault: {again}; {excused} are excused"]
    return []


def of_books(books: Books) -> list[str]:
    """What is wrong with the answers."""
    ended = sum(books.outcomes.values())
    found = list(books.wrong)
    if ended != books.asked:
        found.append(f"{books.asked} jobs were begun, and {ended} ended")
    if not books.answered:
        found.append("no job was answered")
    return found


def of_ledger(replica: Replica) -> list[str]:
    """Whether what a replica has counted adds up."""
    with lazyfx.connect(f"127.0.0.1:{replica.port}") as client:
        stats = client.stats()
    found = []
    recompiles = stats.recompiles
    if recompiles.requested != recompiles.performed + recompiles.saved:
        found.append(f"{replica.name}: recompiles requested are not performed and saved")
    by_reason = sum(reason.count for reason in stats.miss_reasons)
    if by_reason != stats.misses:
        found.append(f"{replica.name}: {stats.misses} misses, {by_reason} by reason")
    mine = stats.tenants[0]
    if (mine.hits, mine.misses, mine.joins) != (stats.hits, stats.misses, stats.joins):
        found.append(f"{replica.name}: the only tenant's counts differ from the server's")
    return found


def of_logs(replica: Replica) -> list[str]:
    """Tracebacks in a log."""
    return [f"{replica.name}: {line.strip()}" for line in replica.log if "Traceback" in line]


def of_resources(replica: Replica, files: int, threads: int) -> list[str]:
    """Files and threads that a replica has more than when it started."""
    found = []
    if replica.open_files() > files + _SPARE:
        found.append(f"{replica.name}: {replica.open_files()} files open, {files} at its start")
    if replica.threads() > threads + _SPARE:
        found.append(f"{replica.name}: {replica.threads()} threads, {threads} at its start")
    return found


def of_processes(cluster: Cluster) -> list[str]:
    """Processes that outlived their replicas."""
    deadline = time.monotonic() + _END_SECONDS
    while (left := cluster.survivors()) and time.monotonic() < deadline:
        time.sleep(0.1)
    found = []
    for pid in left:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        found.append(f"process {pid} was left behind: {command}")
    return found


def of_files(cluster: Cluster, flipped: set[str]) -> list[str]:
    """Half-written files, and temporary ones left behind.

    Args:
        cluster: The fleet, stopped.
        flipped: Names of the files that were damaged on purpose.
    """
    found = [f"{path} was left behind" for path in left_behind(cluster.folder / "tmp")]
    for replica in cluster.replicas:
        staged = list((replica.folder / ".staging").iterdir())
        if len(staged) > _SPARE:
            found.append(f"{replica.name}: {len(staged)} files being written")
    return found + asyncio.run(_unreadable(cluster.on_disk, flipped))


def left_behind(temporary: Path) -> list[Path]:
    """What is in the temporary folder, but for folders that all processes of a user share.

    `import torch._dynamo` makes that of Inductor's cache, servers those in which each has its own.
    """
    return [
        path
        for path in temporary.rglob("*")
        if not (path.name.startswith(_SHARED_FOLDERS) and path.parent == temporary)
    ]


async def _unreadable(replica: Replica, flipped: set[str]) -> list[str]:
    """Read every entry as the server does: only those that were flipped may be damaged."""
    damaged: list[str] = []
    disk = DiskStore(replica.folder, 2**34)
    store = VerifiedStore(disk, on_corrupt=lambda _tier, key: damaged.append(key))
    found = []
    for path in replica.folder.rglob("*"):
        if path.is_file() and re.fullmatch("[0-9a-f]{64}", path.name):
            key = f"{path.parent.parent.name}/{path.name}"
            if await store.get(key) is None and key not in damaged:
                found.append(f"{replica.name}: {key} is on disk and cannot be read")
    found += [
        f"{replica.name}: {key} is half-written or damaged"
        for key in damaged
        if key.rpartition("/")[2] not in flipped
    ]
    await disk.close()
    return found

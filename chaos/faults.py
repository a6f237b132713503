"""The faults: each is one function, which breaks something and mends it again."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from chaos.cluster import Cluster, Replica
from chaos.link import Link


@dataclass(frozen=True)
class Scene:
    """What a fault may break.

    Attributes:
        cluster: The fleet.
        link: The link through which clients reach replica b.
        dice: Chooses what is broken.
        seconds: How long something stays frozen or full.
        damaged: Names of the files in which a bit was flipped.
    """

    cluster: Cluster
    link: Link
    dice: random.Random
    seconds: float
    damaged: set[str] = field(default_factory=set)

    def replica(self) -> Replica:
        """Any replica."""
        return self.dice.choice(self.cluster.replicas)


Fault: TypeAlias = Callable[[Scene], str]
"""Returns what it did, in words."""


def kill_worker(scene: Scene) -> str:
    """Kill one worker of a replica."""
    replica = scene.replica()
    worker = scene.dice.choice(replica.workers())
    os.kill(worker, signal.SIGKILL)
    return f"kill -9 of worker {worker} of {replica.name}"


def kill_fork_server(scene: Scene) -> str:
    """Kill the process that workers are forked from, and all its workers lose their parent."""
    replica = scene.replica()
    pid = replica.fork_server()
    os.kill(pid, signal.SIGKILL)
    time.sleep(scene.seconds)
    mended = _restart(replica)
    return f"kill -9 of fork server {pid} of {replica.name}{mended}"


def _restart(replica: Replica) -> str:
    """Start a replica again if it has ended by itself, as its supervisor would."""
    if replica.is_running():
        return ""
    replica.start()
    return "; it ended, and was started again"


def kill_server(scene: Scene) -> str:
    """Kill a replica and start it again."""
    replica = scene.replica()
    replica.kill()
    replica.start()
    return f"kill -9 of {replica.name}"


def kill_redis(scene: Scene) -> str:
    """Kill Redis, and start an empty one."""
    scene.cluster.redis.kill()
    time.sleep(scene.seconds)
    scene.cluster.redis.start()
    return f"kill -9 of Redis, back after {scene.seconds:g} s, empty"


def freeze_server(scene: Scene) -> str:
    """Freeze a replica for a while."""
    replica = scene.replica()
    replica.signal(signal.SIGSTOP)
    time.sleep(scene.seconds)
    replica.signal(signal.SIGCONT)
    return f"SIGSTOP of {replica.name} for {scene.seconds:g} s"


def freeze_redis(scene: Scene) -> str:
    """Freeze Redis for a while."""
    scene.cluster.redis.signal(signal.SIGSTOP)
    time.sleep(scene.seconds)
    scene.cluster.redis.signal(signal.SIGCONT)
    return f"SIGSTOP of Redis for {scene.seconds:g} s"


def fill_disk(scene: Scene) -> str:
    """Let a replica write no byte to any file for a while, as on a full disk."""
    replica = scene.cluster.on_disk
    before = resource.prlimit(replica.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    time.sleep(scene.seconds)
    resource.prlimit(replica.pid, resource.RLIMIT_FSIZE, before)
    return f"disk of {replica.name} full for {scene.seconds:g} s"


def damage_files(scene: Scene) -> str:
    """Flip a bit in stored files of a replica, which must then read them."""
    replica = scene.cluster.on_disk
    replica.kill()
    files = sorted(
        path
        for path in replica.folder.rglob("*")
        if path.is_file() and len(path.name) == 64 and path.stat().st_size
    )
    chosen = scene.dice.sample(files, min(len(files), 25))
    for path in chosen:
        data = bytearray(path.read_bytes())
        data[scene.dice.randrange(len(data))] ^= 1 << scene.dice.randrange(8)
        path.write_bytes(data)
        scene.damaged.add(path.name)
    replica.start()
    return f"a bit flipped in {len(chosen)} of {len(files)} files of {replica.name}"


def fill_file_system(scene: Scene) -> str:
    """Fill the file system of a store, which other programs may do as well."""
    replica = scene.cluster.on_disk
    if scene.cluster.no_file_system:
        return (
            f"skipped, because no small file system can be mounted: {scene.cluster.no_file_system}"
        )
    filler, size = replica.folder / "filler", 0
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for piece in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    size += file.write(bytes(piece))
    time.sleep(scene.seconds)
    filler.unlink()
    return (
        f"file system of {replica.name} full for {scene.seconds:g} s, with {size} bytes of another"
    )


def damage_redis(scene: Scene) -> str:
    """Flip a bit in values in Redis while replicas read and write them."""
    client = scene.cluster.redis.client()
    try:
        names = sorted(client.scan_iter("lazyfx:*", count=1000))
        chosen = scene.dice.sample(names, min(len(names), 25))
        for name in chosen:
            draws = [scene.dice.randrange(2**31), 1 << scene.dice.randrange(8)]
            client.eval(_FLIP, 1, name, *draws)
    finally:
        client.close()
    return f"a bit flipped in {len(chosen)} of {len(names)} values in Redis"


def cut_link(scene: Scene) -> str:
    """Break all connections to a replica."""
    scene.link.cut()
    return "link to b cut"


def swallow_packets(scene: Scene) -> str:
    """Pass nothing on to a replica for a while, and then cut the link."""
    scene.link.swallow()
    time.sleep(scene.seconds)
    scene.link.cut()
    scene.link.resume()
    return f"link to b dead for {scene.seconds:g} s, then cut"


def drain(scene: Scene) -> str:
    """Drain a replica and start it again, as a rolling update does."""
    replica = scene.replica()
    status = replica.drain()
    replica.start()
    if status:
        raise RuntimeError(f"{replica.name} drained with status {status}")
    return f"{replica.name} drained and started again"


# In one step, so that no value is made where one has just left. The time to live stays.
_FLIP = """
local size = redis.call('strlen', KEYS[1])
if size == 0 then return 0 end
local at = ARGV[1] % size
local byte = string.byte(redis.call('getrange', KEYS[1], at, at))
redis.call('setrange', KEYS[1], at, string.char(bit.bxor(byte, ARGV[2])))
return 1
"""

FAULTS: tuple[Fault, ...] = (
    kill_worker, kill_fork_server, kill_server, kill_redis, freeze_server, freeze_redis,
    fill_disk, fill_file_system, damage_files, damage_redis, cut_link, swallow_packets, drain,
)  # fmt: skip

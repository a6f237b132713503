"""The servers of the benchmark, each in its own process."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.echo import start_echo

_READY = re.compile(r"serving on (\S+), metrics on (\S+)")
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Servers:
    """The addresses of the service and of the echo, and their process ids."""

    lazyfx: str
    echo: str
    pids: tuple[int, int]


@dataclass(frozen=True)
class Lazyfx:
    """A `lazyfx serve` process: its address, the URL of its metrics, its process id."""

    address: str
    metrics: str
    pid: int


@contextlib.contextmanager
def running_lazyfx(store: Path, *flags: str) -> Iterator[Lazyfx]:
    """Run `lazyfx serve` with its store, and more flags."""
    command = [
        sys.executable, "-m", "lazyfx_server", "--listen", "127.0.0.1:0",
        "--metrics-port", "0", "--store-path", str(store), *flags,
    ]  # fmt: skip
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address, metrics = _addresses(server)
        yield Lazyfx(address, metrics, server.pid)
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


@contextlib.contextmanager
def running(store: Path) -> Iterator[Servers]:
    """Run `lazyfx serve` with its own store, and an echo."""
    with running_lazyfx(store) as server:
        echo, echo_address = start_echo()
        try:
            yield Servers(server.address, echo_address, (server.pid, echo.pid))
        finally:
            echo.terminate()
            try:
                echo.wait(30)
            except subprocess.TimeoutExpired:
                echo.kill()


def _addresses(server: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait until the server serves; from then on its log is read and dropped."""
    found: list[tuple[str, str]] = []
    log: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert server.stderr is not None
        for line in server.stderr:
            if not found:
                log.append(line)
                found.extend(_READY.findall(line))
            if found:
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    if not ready.wait(_START_SECONDS) or not found:
        raise RuntimeError("the server did not start:\n" + "".join(log))
    return found[0]

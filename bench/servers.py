"""The servers that the bench talks to, each in a process of its own."""

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

_READY = re.compile(r"serving on (\S+), metrics on")
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Servers:
    """The addresses of the service and of the echo, and their process ids."""

    lazyfx: str
    echo: str
    pids: tuple[int, int]


@contextlib.contextmanager
def running(store: Path) -> Iterator[Servers]:
    """Run `lazyfx serve` on a store of its own, and an echo."""
    command = [
        sys.executable, "-m", "lazyfx_server", "--listen", "127.0.0.1:0",
        "--metrics-port", "0", "--store-path", str(store),
    ]  # fmt: skip
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    echo, echo_address = start_echo()
    try:
        yield Servers(_address(server), echo_address, (server.pid, echo.pid))
    finally:
        for process in (server, echo):
            process.terminate()
        for process in (server, echo):
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(server: subprocess.Popen[str]) -> str:
    """Wait until the server serves; from then on its log is read and dropped."""
    found: list[str] = []
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

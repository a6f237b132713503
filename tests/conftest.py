"""A real server on a free loopback port, and clients of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nursery
import pytest

import lazyfx

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What the user who runs the tests trusts is nothing to them.
os.environ["LAZYFX_KNOWN_SERVERS"] = os.devnull
# Jobs of a shell in the background ignore Ctrl-C, and all that they start does too; some tests
# press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_READY = re.compile(r"serving on (\S+), metrics on (\S+)")
_START_SECONDS = 120.0


@dataclass
class RunningServer:
    """A `lazyfx serve` process."""

    process: subprocess.Popen[str] | nursery.Process
    address: str
    metrics_url: str
    log: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, seconds: float = 60.0) -> int:
        """End the server by SIGTERM and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(10)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        os.environ[nursery.VARIABLE] = nursery.open_nurseries()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[nursery.VARIABLE].partition(":")[2], ignore_errors=True)


def start_server(
    store: Path | None,
    *flags: str,
    environment: dict[str, str] | None = None,
    own_interpreter: bool = False,
) -> RunningServer:
    """Start a server on free ports and wait until it serves.

    Args:
        store: Its folder; None for a store in memory.
        flags: More of its command line.
        environment: Variables that are changed for it.
        own_interpreter: Start a new interpreter, as a user does, where a fork of one that has
            imported everything would hide something: its start, its seed of hashes.
    """
    arguments = [
        "--listen", "127.0.0.1:0", "--metrics-port", "0", "--store-path", str(store or ""), *flags
    ]  # fmt: skip
    variables = {**os.environ, **(environment or {})}
    process: subprocess.Popen[str] | nursery.Process
    if own_interpreter or not nursery.fits(variables):
        command = [sys.executable, "-m", "lazyfx_server", *arguments]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables)
    else:
        process = nursery.start(arguments, variables)
    log: list[str] = []
    ready = threading.Event()
    found: list[str] = []

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            if match := _READY.search(line):
                found.extend(match.groups())
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    if not ready.wait(_START_SECONDS) or not found:
        process.kill()
        raise RuntimeError("the server did not start:\n" + "".join(log))
    return RunningServer(process, found[0], found[1], log)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers with flags of the test's own; they are stopped at its end."""
    servers: list[RunningServer] = []

    def start(*flags: str, store: Path | None = None, **kwargs: Any) -> RunningServer:
        server = start_server(store or tmp_path / "store", *flags, **kwargs)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for the tests of a file, with a store of its own."""
    running = start_server(tmp_path_factory.mktemp("store"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def launch_for_file(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., RunningServer]]:
    """As `launch`, for servers that the tests of a file share."""
    servers: list[RunningServer] = []

    def start(*flags: str, store: Path | None = None, **kwargs: Any) -> RunningServer:
        server = start_server(store or tmp_path_factory.mktemp("store"), *flags, **kwargs)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def named_host() -> str:
    """A name of this machine that only resolving it tells so."""
    for name in (socket.gethostname(), "ip4-loopback", "lazyfx.localhost"):
        try:
            if name != "localhost" and socket.gethostbyname(name).startswith("127."):
                return name
        except OSError:
            continue
    pytest.skip("no name but localhost resolves to 127.0.0.1 here")


@pytest.fixture
def client(server: RunningServer) -> Iterator[lazyfx.Client]:
    """A blocking client of the file's server."""
    with lazyfx.connect(server.address) as connected:
        yield connected

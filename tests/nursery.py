"""Starts servers as forks of a process that has imported all that they need.

Most of what a server costs until it serves is imports: about ten seconds of a core. A *nursery*
(`nursery_process.py`) pays for them once in a test run; each server is then a fork of it that runs
`python -m lazyfx_server` as its main program, with its own arguments, environment and standard
streams, and its fork server is a fork of that. Tests of how a server starts, and servers with an
environment that libraries read when they are imported, take a new interpreter (`start_server` in
`conftest.py` chooses).

A test run has one nursery for each kind of server, which all workers of pytest-xdist share. It
ends with the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

VARIABLE = "LAZYFX_TEST_NURSERIES"
"""Names the folder of the run's nurseries and the process that they end with."""

_PROGRAM = Path(__file__).with_name("nursery_process.py")
# CUDA does not survive a fork after torch has looked for devices.
_GPU = Path("/dev/nvidiactl")
# Libraries read these when they are imported.
_READ_AT_IMPORT = ("TORCH", "OMP_", "MKL_", "CUDA_", "PYTHON", "LD_", "GRPC_")
_READ_LATER = ("PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR")
_START_SECONDS = 120.0


class Process:
    """A server that a nursery has forked; as much of `subprocess.Popen` as tests use.

    Attributes:
        pid: Its process.
        stderr: What it writes to its standard error.
        returncode: As `Popen.returncode`.
    """

    def __init__(self, connection: socket.socket, pid: int, stderr: IO[str]) -> None:
        self._connection = connection
        self.pid = pid
        self.stderr = stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.returncode = int(_receive(self._connection)["status"])
            self._connection.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, when it has ended.

        Raises:
            subprocess.TimeoutExpired: It has not.
        """
        if self.returncode is None:
            select.select([self._connection], [], [], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired("lazyfx_server", timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        """As `Popen.send_signal`."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """As `Popen.terminate`."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """As `Popen.kill`."""
        self.send_signal(signal.SIGKILL)


def open_nurseries() -> str:
    """Begin a run; what it returns is to be in the environment of all that run tests."""
    return f"{os.getpid()}:{tempfile.mkdtemp(prefix='lazyfx-tests-')}"


def fits(environment: Mapping[str, str]) -> bool:
    """Whether a fork of the nursery can have this environment."""
    changed = {name for name in {*environment, *os.environ} if name not in _READ_LATER}
    return (
        VARIABLE in os.environ
        and not _GPU.exists()
        and not any(
            environment.get(name) != os.environ.get(name)
            for name in changed
            if name.startswith(_READ_AT_IMPORT)
        )
    )


def start(arguments: Sequence[str], environment: Mapping[str, str]) -> Process:
    """Start `python -m lazyfx_server` with these arguments; standard error is a pipe.

    Raises:
        RuntimeError: The nursery did not start.
    """
    native = any(word == "--native" or word.startswith("--native=") for word in arguments)
    connection = _connect("native" if native else "plain")
    reading, writing = os.pipe()
    try:
        request = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(Path.cwd()),
        }
        _send(connection, request, [0, 1, writing])
    finally:
        os.close(writing)
    stderr = os.fdopen(reading, encoding="utf-8", errors="replace")
    return Process(connection, int(_receive(connection)["pid"]), stderr)


def _connect(kind: str) -> socket.socket:
    owner, _, folder = os.environ[VARIABLE].partition(":")
    address = Path(folder, kind)
    with Path(folder, f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not address.exists():
            command = [sys.executable, str(_PROGRAM), kind, str(address), owner]
            subprocess.Popen(command, stdin=subprocess.DEVNULL)
            end = time.monotonic() + _START_SECONDS
            while not address.exists():
                if time.monotonic() > end:
                    raise RuntimeError("the process that servers are forked from did not start")
                time.sleep(0.05)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(address))
    return connection


def _send(connection: socket.socket, message: object, descriptors: Sequence[int] = ()) -> None:
    data = json.dumps(message).encode()
    socket.send_fds(connection, [len(data).to_bytes(4, "big")], descriptors)
    connection.sendall(data)


def _receive(connection: socket.socket) -> dict[str, int]:
    """One message; a nursery that is gone has taken its servers with it."""
    size = connection.recv(4, socket.MSG_WAITALL)
    if len(size) < 4:
        return {"pid": -1, "status": -signal.SIGKILL}
    found = json.loads(connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    assert isinstance(found, dict)
    return found

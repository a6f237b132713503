"""Starts Python programs as forks of a process that has imported all that they need.

Most of what a server or a training job costs until it does anything is imports: about ten seconds
of a core for the one, eight for the other. A *nursery* (`nursery_process.py`) pays for them once
in a test run; each program is then a fork of it with its own arguments, environment, folder and
standard streams, and a server's fork server is a fork of that. Tests of how a server starts, and
programs with an environment that libraries read when they are imported, take a new interpreter.

A test run has one nursery for each `Kind`, which all workers of pytest-xdist share. It ends with
the run. Run as a program (`python nursery.py KIND ARGUMENTS`), this file does what a new
interpreter with these arguments would do, for what starts programs by their command lines.
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import IO, Literal

VARIABLE = "LAZYFX_TEST_NURSERIES"
"""Names the folder of the run's nurseries and the process that they end with."""

Kind = Literal["torch", "inductor", "server", "native_server"]
"""What is imported: torch alone, dynamo and Inductor too, or what servers import."""

_PROGRAM = Path(__file__).with_name("nursery_process.py")
# CUDA does not survive a fork after torch has looked for devices.
_GPU = Path("/dev/nvidiactl")
# Libraries read these when they are imported.
_READ_AT_IMPORT = ("TORCH", "MKL_", "CUDA_", "PYTHON", "LD_", "GLIBC_", "GRPC_", "ATEN_", "OMP_")
_READ_LATER = ("PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR", "OMP_NUM_THREADS")
_START_SECONDS = 240.0


class Process:
    """A program that a nursery has forked; as much of `subprocess.Popen` as tests use.

    It ends at the latest when this object does.

    Attributes:
        pid: Its process.
        stdout: What it writes, if that was to be a pipe.
        stderr: The same of standard error.
        returncode: As `Popen.returncode`.

    Raises:
        RuntimeError: The nursery is gone.
    """

    def __init__(
        self, connection: socket.socket, stdout: IO[str] | None, stderr: IO[str] | None
    ) -> None:
        self._connection = connection
        self.pid = int(_receive(connection)["pid"])
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        if self.pid < 1:  # a signal to -1 would go to every process
            for each in (connection, stdout, stderr):
                if each is not None:
                    each.close()
            raise RuntimeError("the process that programs are forked from has ended")

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
            raise subprocess.TimeoutExpired("a program of a nursery", timeout or 0.0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has written to its pipes, when it has ended.

        Raises:
            subprocess.TimeoutExpired: It has not, or a process that it left behind may still write.
        """
        written: dict[int, str] = {}

        def read(number: int, stream: IO[str]) -> None:
            written[number] = stream.read()

        streams = enumerate((self.stdout, self.stderr))
        readers = [Thread(target=read, args=(n, s), daemon=True) for n, s in streams if s]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired("a program of a nursery", timeout or 0.0)
        return written.get(0, ""), written.get(1, "")

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


@contextlib.contextmanager
def nurseries() -> Iterator[None]:
    """The nurseries of a test run, for everything that it starts."""
    with tempfile.TemporaryDirectory(prefix="lazyfx-tests-") as folder:
        os.environ[VARIABLE] = f"{os.getpid()}:{folder}"
        yield
        del os.environ[VARIABLE]


def start(
    kind: Kind,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdout: int | None = subprocess.PIPE,
) -> Process | subprocess.Popen[str]:
    """Start Python with these arguments.

    Args:
        kind: What the program imports.
        arguments: As of the interpreter, of which `-I`, `-W`, `-c` and `-m` are understood.
        env: All its variables; those of this process when left out.
        stdout: `subprocess.PIPE`, or a file descriptor; that of this process when None. Standard
            error is a pipe.
    """
    environment = dict(os.environ if env is None else env)
    if not _fits(environment):
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    reading, writing = os.pipe()
    streams: list[IO[str] | None] = [None, os.fdopen(reading, encoding="utf-8", errors="replace")]
    given = [0, 1 if stdout is None else stdout, writing]
    made = [writing]
    if stdout == subprocess.PIPE:
        reading, given[1] = os.pipe()
        streams[0] = os.fdopen(reading, encoding="utf-8", errors="replace")
        made.append(given[1])
    try:
        connection = _request(kind, arguments, environment, given)
    finally:
        for descriptor in made:
            os.close(descriptor)
    return Process(connection, *streams)


def run(
    kind: Kind,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    check: bool = False,
    timeout: float = 300.0,
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, as `subprocess.run` does.

    Raises:
        subprocess.CalledProcessError: It failed, and `check` is set.
        subprocess.TimeoutExpired: It took too long.
    """
    process = start(kind, arguments, env=env)
    try:
        stdout, stderr = process.communicate(timeout)
    finally:
        process.kill()
    ended = subprocess.CompletedProcess(arguments, process.wait(), stdout, stderr)
    if check:
        ended.check_returncode()
    return ended


def command(kind: Kind) -> list[str]:
    """What stands for the interpreter in a command line."""
    return [sys.executable, "-I", "-S", __file__, kind] if _fits(os.environ) else [sys.executable]


def _fits(environment: Mapping[str, str]) -> bool:
    """Whether a fork of a nursery can have this environment."""
    changed = {name for name in {*environment, *os.environ} if name not in _READ_LATER}
    return (
        VARIABLE in environment
        and not _GPU.exists()
        and not any(
            environment.get(name) != os.environ.get(name)
            for name in changed
            if name.startswith(_READ_AT_IMPORT)
        )
    )


def _request(
    kind: Kind, arguments: Sequence[str], environment: Mapping[str, str], streams: Sequence[int]
) -> socket.socket:
    connection = _connect(kind)
    request = {
        "arguments": list(map(str, arguments)),
        "environment": dict(environment),
        "folder": str(Path.cwd()),
    }
    data = json.dumps(request).encode()
    socket.send_fds(connection, [len(data).to_bytes(4, "big")], streams)
    connection.sendall(data)
    return connection


def _connect(kind: Kind) -> socket.socket:
    owner, _, folder = os.environ[VARIABLE].partition(":")
    address = Path(folder, kind)
    with Path(folder, f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not address.exists():
            _start_nursery(kind, address, owner)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(address))
    return connection


def _start_nursery(kind: Kind, address: Path, owner: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    nursery = subprocess.Popen(
        [sys.executable, str(_PROGRAM), kind, str(address), owner],
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    end = time.monotonic() + _START_SECONDS
    while not address.exists():
        if nursery.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the process that programs of kind {kind} are forked from failed")
        time.sleep(0.05)


def _receive(connection: socket.socket) -> dict[str, int]:
    """One message; a nursery that is gone has taken its programs with it."""
    size = connection.recv(4, socket.MSG_WAITALL)
    if len(size) < 4:
        return {"pid": -1, "status": -signal.SIGKILL}
    found = json.loads(connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    assert isinstance(found, dict)
    return found


def _main(kind: Kind, *arguments: str) -> int:
    process = Process(_request(kind, arguments, os.environ, [0, 1, 2]), None, None)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: process.send_signal(number))
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))  # type: ignore[arg-type]

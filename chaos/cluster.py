"""The fleet under test: a replica on a folder, two on one Redis, and all their processes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import nursery
import redis
from prometheus_client.parser import text_string_to_metric_families

_READY = re.compile(r"serving on (\S+), metrics on (\S+)")
_START_SECONDS: Final = 120.0
_SAMPLE_SECONDS: Final = 0.2
# Room for the store of a run; it is filled on purpose.
_FILE_SYSTEM_BYTES: Final = 256 << 20


class Redis:
    """A Redis server with its data in memory."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise RuntimeError("chaos needs redis-server: apt-get install redis-server")
        self.port = free_port()
        self._command = [
            program, "--port", str(self.port), "--bind", "127.0.0.1",
            "--dir", str(folder), "--save", "", "--appendonly", "no",
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, empty, and wait until it accepts connections."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            time.sleep(0.05)
        raise RuntimeError("Redis did not start")

    def client(self) -> Any:
        """A client of it that is none of the fleet's."""
        return redis.Redis(port=self.port)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None, "it runs"
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Replica:
    """One `lazyfx serve` at a fixed address, which can be ended and started again.

    Attributes:
        port: Its port.
        folder: Its store.
        log: All lines that it has logged.
    """

    def __init__(self, name: str, folder: Path, *flags: str) -> None:
        self.name = name
        self.port = free_port()
        self.folder = folder / f"store-{name}"
        self.log: list[str] = []
        self._temporary = folder / "tmp"
        self._temporary.mkdir(exist_ok=True)
        self._metrics = ""
        self._process: nursery.Process | subprocess.Popen[str] | None = None
        self._arguments = [
            "-m", "lazyfx_server", "--listen", f"127.0.0.1:{self.port}",
            "--metrics-port", "0", "--store-path", str(self.folder), "--workers", "2",
            "--native", "off", *flags, "--tenant-secret", str(folder / "tenants.key"),
            "--signing-key", str(folder / "signing.pem"),
        ]  # fmt: skip
        self._environment = {**os.environ, "TMPDIR": str(self._temporary)}

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, "it runs"
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it serves."""
        process = self._process = nursery.start(
            "server", self._arguments, env=self._environment, stdout=None
        )
        ready = threading.Event()

        def read() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                self.log.append(line)
                if found := _READY.search(line):
                    self._metrics = found.group(2)
                    ready.set()
            ready.set()

        threading.Thread(target=read, name="chaos-log", daemon=True).start()
        if not ready.wait(_START_SECONDS) or process.poll() is not None:
            process.kill()
            raise RuntimeError(f"replica {self.name} did not start:\n" + "".join(self.log[-30:]))

    def is_running(self) -> bool:
        """Whether the server process has not ended."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send the server process a signal."""
        assert self._process is not None, "it runs"
        self._process.send_signal(number)

    def kill(self) -> None:
        """End the server process at once; its children must notice by themselves."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def drain(self, seconds: float = 60.0) -> int:
        """End it as an operator does, and return its exit status."""
        self.signal(signal.SIGTERM)
        assert self._process is not None, "it runs"
        return self._process.wait(seconds)

    def fork_server(self) -> int:
        """The process that its workers are forked from."""
        return children(self.pid)[0]

    def workers(self) -> list[int]:
        """Its worker processes."""
        return [worker for child in children(self.pid) for worker in children(child)]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over the series that have these labels."""
        with urllib.request.urlopen(self._metrics, timeout=60) as response:
            text = response.read().decode()
        wanted = labels.items()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and wanted <= sample.labels.items()
        )

    def open_files(self) -> int:
        """How many files and connections the server process has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def threads(self) -> int:
        """How many threads the server process has."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))


class Cluster:
    """A Redis, and three replicas with the same secrets.

    Args:
        folder: For stores, keys and temporary files.

    Attributes:
        on_disk: The replica whose store is a folder.
        linked: A replica on Redis, which clients reach through a link.
        on_redis: The replicas whose store is Redis; they have folders of their own, as on two
            machines.
        replicas: All of them.
        no_file_system: Why the store of `on_disk` has no small file system of its own; empty if it
            has.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: dict[int, str] = {}
        self._ended = threading.Event()
        self.redis = Redis(folder)
        self.on_disk = Replica("a", folder)
        store = ("--store", f"redis://127.0.0.1:{self.redis.port}/0")
        self.on_redis = [Replica(name, folder, *store) for name in ("b", "c")]
        self.linked = self.on_redis[0]
        self.replicas = [self.on_disk, *self.on_redis]
        self.no_file_system = "it is not started yet"

    @contextlib.contextmanager
    def running(self) -> Iterator[Cluster]:
        """Start everything; end everything that is left afterwards."""
        self.no_file_system = _mount(self.on_disk.folder)
        try:
            self.redis.start()
            for replica in self.replicas:
                replica.start()
            threading.Thread(target=self._watch, name="chaos-watch", daemon=True).start()
            yield self
        finally:
            self._ended.set()
            for replica in self.replicas:
                replica.kill()
            self.redis.kill()
            for pid in self.survivors():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not self.no_file_system:
                subprocess.run(["umount", "--lazy", self.on_disk.folder], check=True)

    def survivors(self) -> list[int]:
        """Processes that replicas have started and that still run."""
        return [pid for pid, born in self._processes.items() if born and _born(pid) == born]

    def _watch(self) -> None:
        """Keep a list of all processes that replicas start."""
        while not self._ended.wait(_SAMPLE_SECONDS):
            for replica in self.replicas:
                parents = [replica.pid]
                while parents:
                    parents = [child for parent in parents for child in children(parent)]
                    for pid in parents:
                        self._processes.setdefault(pid, _born(pid))


def _mount(folder: Path) -> str:
    """Mount a small file system; returns why that is not possible."""
    if os.geteuid():
        return "only root may"
    folder.mkdir(mode=0o700)
    options = f"size={_FILE_SYSTEM_BYTES},mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", options, "lazyfx-chaos", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip() or "mount failed"


def _born(pid: int) -> str:
    """When a process began; empty if it has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    return ""


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return sorted(found)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

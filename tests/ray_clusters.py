"""A Ray cluster of several nodes on this machine, which only this test run can use."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_LOOPBACK = "127.0.0.1"
# With RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, Ray keeps to the loopback address, as nobody else is to
# reach these nodes; but then it does not let them be several, and not be told their address.
_START = (
    "import ctypes, signal;"
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM);"  # ends with the test run
    "from ray._private import ray_constants, services;"
    "ray_constants.ENABLE_RAY_CLUSTER = True;"
    "services.resolve_ip_for_localhost = lambda host: host;"
    "from ray.scripts.scripts import main; main()"
)
_START_SECONDS = 120.0


class RayProcess:
    """A head or a node: `ray start`, and all that it has started.

    Args:
        arguments: Of `ray start`.
        environment: All its variables.
    """

    def __init__(self, arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
        command = [
            sys.executable, "-c", _START, "start", "--block", "--disable-usage-stats",
            f"--node-ip-address={_LOOPBACK}", "--include-log-monitor=false",
            "--min-worker-port=0", "--max-worker-port=0",
            "--num-cpus=0", "--object-store-memory=100000000", *arguments,
        ]  # fmt: skip
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command, env=dict(environment), stdout=out, stderr=out, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """As when the machine loses power: each process is killed, none is asked."""
        doomed = tree(self._process.pid)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in doomed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self._process.wait(30)

    def running(self) -> bool:
        return self._process.poll() is None


_RUNS_JOBS = '--resources={"lazyfx": 2}'


class RayCluster:
    """A head, which also runs jobs, because a node more takes long to start; and other nodes."""

    def __init__(self) -> None:
        # Paths of Ray's sockets are inside, so its name is short.
        self.folder = Path(tempfile.mkdtemp(prefix="lfx-ray-"))
        self._port, self._client_port = _free_port(), _free_port()
        self.environment = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_worker_niceness": "0",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        self.log = self.folder / "log"
        self._processes: list[RayProcess] = []

    @property
    def address(self) -> str:
        """For `--executor`."""
        return f"ray://{_LOOPBACK}:{self._client_port}"

    def start_head(self) -> RayProcess:
        """Start the head, and wait until it takes connections; it runs jobs when it is ready."""
        started = self._start([
            "--head", f"--port={self._port}", f"--ray-client-server-port={self._client_port}",
            "--include-dashboard=false", "--no-monitor", f"--temp-dir={self.folder}", _RUNS_JOBS,
        ])  # fmt: skip
        self._wait_until(lambda: _listens(self._client_port), started)
        return started

    def start_node(self, **variables: str) -> RayProcess:
        """Start a node that runs jobs, with other variables; it registers when it is ready."""
        return self._start([f"--address={_LOOPBACK}:{self._port}", _RUNS_JOBS], **variables)

    def _start(self, arguments: list[str], **variables: str) -> RayProcess:
        environment = {**os.environ, **self.environment, **variables}
        process = RayProcess(arguments, environment, self.log)
        self._processes.append(process)
        return process

    def _wait_until(self, true: Callable[[], bool], process: RayProcess) -> None:
        end = time.monotonic() + _START_SECONDS
        while not true():
            if time.monotonic() > end or not process.running():
                raise RuntimeError(f"Ray did not start:\n{self.log.read_text()}")
            time.sleep(0.1)

    def kill_all(self) -> None:
        """Kill the head first, then the other nodes, which do not outlive it for long."""
        for process in self._processes:
            if process.running():
                process.kill()
        self._processes.clear()

    def close(self) -> None:
        self.kill_all()
        shutil.rmtree(self.folder, ignore_errors=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((_LOOPBACK, port)) == 0


def _free_port() -> int:
    with socket.create_server((_LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])


def tree(root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found

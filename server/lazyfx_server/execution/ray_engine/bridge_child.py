"""Starts and ends a bridge process, and all that it has started."""

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
from pathlib import Path
from typing import Final

_BRIDGE: Final = "lazyfx_server.execution.ray_engine.bridge_process"
_FOLDER: Final = "lfxray-"
# Of clusters that this process starts: only this machine reaches them, with a token that only
# this process knows.
_LOCAL_ENVIRONMENT: Final = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # When memory runs out, the kernel kills our workers, as without Ray; Ray would kill the actor.
    "RAY_memory_monitor_refresh_ms": "0",
    # Our workers lower their own priority, as without Ray; Ray would do it to the actor, by 15.
    "RAY_worker_niceness": "0",
}


class BridgeChild:
    """A running bridge process; it ends with this process at the latest.

    Args:
        address: See `RayEngine`.
        opener: See `RayEngine`.

    Attributes:
        connection: The server's end of the socket.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, address: str, opener: str) -> None:
        self._folder = _own_folder() if address == "local" else ""
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
        if self._folder:
            environment |= _LOCAL_ENVIRONMENT
            environment |= {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": self._folder}
        self.connection, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            self._process = subprocess.Popen(  # noqa: S603 - this Python, and settings of the operator
                [sys.executable, "-m", _BRIDGE, str(descriptor), address, opener],
                pass_fds=[descriptor], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
            )  # fmt: skip

    def hand_over(self, config: bytes) -> None:
        """Send it the settings of nodes, on a pipe that then stays open; blocks."""
        assert self._process.stdin is not None, "a pipe"
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(len(config).to_bytes(8, "big") + config)
            self._process.stdin.flush()

    def kill(self) -> None:
        """Kill it, and with it what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def clean_up(self) -> None:
        """Wait for its end, and remove its files; blocks."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._process.wait()
        self.connection.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


def _own_folder() -> str:
    """A folder for Ray's logs and sockets; its name is short, because those of sockets must be."""
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{_FOLDER}*-*"):  # of servers that were killed
        pid = left.name.removeprefix(_FOLDER).partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-")

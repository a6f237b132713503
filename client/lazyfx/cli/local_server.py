"""A temporary server on this machine."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lazyfx.errors import LazyfxError

_READY = re.compile(r"serving on (\S+), metrics on (\S+)")
_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_LAST_LINES = 5


@dataclass(frozen=True)
class LocalServer:
    """The addresses of a running server.

    Attributes:
        address: "host:port" of the service.
        metrics_url: URL of its metrics.
    """

    address: str
    metrics_url: str


@contextmanager
def local_server() -> Iterator[LocalServer]:
    """Run a server on free loopback ports with a temporary store.

    Raises:
        LazyfxError: The server is not installed, or does not start.
    """
    if importlib.util.find_spec("lazyfx_server") is None:
        raise LazyfxError(
            "the server is not installed; install it with: pip install 'lazyfx[server]'"
        )
    with tempfile.TemporaryDirectory(prefix="lazyfx-") as folder:
        log = Path(folder) / "server.log"
        command = [
            sys.executable, "-m", "lazyfx.cli", "serve",
            "--listen", "127.0.0.1:0", "--metrics-port", "0",
            "--store-path", str(Path(folder) / "store"),
        ]  # fmt: skip
        # Ignore settings for the user's own server.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LAZYFX_")}
        with log.open("wb") as sink:
            process = subprocess.Popen(  # noqa: S603 - our own command, without a shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=environment,
                # Ctrl-C reaches only this process; the server is stopped gracefully below.
                start_new_session=True,
            )
        try:
            yield _wait_until_ready(process, log)
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> LocalServer:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        text = log.read_text(encoding="utf-8", errors="replace")
        if found := _READY.search(text):
            return LocalServer(found[1], found[2])
        if ended:
            break
        time.sleep(0.05)
    output = " / ".join(text.strip().splitlines()[-_LAST_LINES:])
    raise LazyfxError(f"the server did not start; its output: {output or 'nothing'}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

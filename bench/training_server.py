"""A server with native workers, for the training benchmark."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_READY = re.compile(r"serving on (\S+), metrics on (\S+)")
_MADE = re.compile(r'^lazyfx_native_compiles_total\{result="made"\} (\S+)', re.MULTILINE)


@dataclass(frozen=True)
class NativeServer:
    """A `lazyfx serve --native` process."""

    pid: int
    address: str
    metrics_url: str

    def compiles(self) -> int:
        """Native compiles so far."""
        with urllib.request.urlopen(self.metrics_url, timeout=60) as response:
            found = _MADE.search(response.read().decode())
        return int(float(found[1])) if found else 0


@contextlib.contextmanager
def native_server(store: Path) -> Iterator[NativeServer]:
    """Run a server with its own store, and wait until it serves."""
    command = [
        sys.executable, "-m", "lazyfx_server", "--native", "--workers", "1",
        "--listen", "127.0.0.1:0", "--metrics-port", "0", "--store-path", str(store),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        log = []
        for line in process.stderr:
            log.append(line)
            if found := _READY.search(line):
                break
        else:
            raise RuntimeError("the server did not start:\n" + "".join(log))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield NativeServer(process.pid, found[1], found[2])
    finally:
        process.terminate()
        process.wait(60)

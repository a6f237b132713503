"""A `lazyfx serve` process on a free loopback port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import nursery
import shared_headers

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


def start_server(
    store: Path | None,
    *flags: str,
    environment: dict[str, str] | None = None,
    own_interpreter: bool = False,
    kind: nursery.Kind | None = None,
) -> RunningServer:
    """Start a server on free ports and wait until it serves.

    Args:
        store: Its folder; None for a store in memory.
        flags: More of its command line.
        environment: Variables that are changed for it.
        own_interpreter: Start a new interpreter, as a user does, where a fork of one that has
            imported everything would hide something: its start, its hash seed.
        kind: What it imports before it starts; by its flags if left out.
    """
    arguments = [
        "-m", "lazyfx_server", "--listen", "127.0.0.1:0", "--metrics-port", "0",
        "--store-path", str(store or ""), *flags,
    ]  # fmt: skip
    variables = {**os.environ, **(environment or {})}
    process: subprocess.Popen[str] | nursery.Process
    if own_interpreter:
        command = [sys.executable, *arguments]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables)
    else:
        kind = kind or ("native_server" if "--native" in flags else "server")
        if kind == "native_server" and (compiler := shared_headers.compiler()):
            variables.setdefault("CXX", compiler)
            shared_headers.collect()
        process = nursery.start(kind, arguments, env=variables, stdout=None)
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

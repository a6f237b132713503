"""`python -m bench.warm_start`: the first training step of a job that has run before.

With and without the memory of jobs, in alternation: each run is a new process with an empty cache
folder, as on another machine, or with `--kept` one that has the kernels. Calls are those that the
server counts. `--delay` adds a delay to each direction of the connection, in milliseconds: on one
machine a round trip costs next to nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench.training import Bench
from bench.training_peers import Job
from bench.training_server import NativeServer, native_server
from bench.training_table import LAZYFX, WARM

_CALLS = re.compile(r"^lazyfx_requests_total\{.*\} (\S+)", re.MULTILINE)
_BYTES = re.compile(r'^lazyfx_artifact_bytes_total\{kind="inductor"\} (\S+)', re.MULTILINE)


def main() -> None:
    """Run all ways in turn, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="vit,bert")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--kept", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with native_server(folder / "store") as server, delayed(server.address, given.delay) as at:
            for model in given.models.split(","):
                bench = Bench(folder, model, given.layers)
                measure(bench, server, at, given.rounds, kept=given.kept)


def measure(bench: Bench, server: NativeServer, address: str, rounds: int, *, kept: bool) -> None:
    """Measure one model, and print a line for each way."""
    model = bench.folder / "kept" if kept else None
    seconds: dict[str, list[float]] = {"false": [], "true": []}
    told: dict[str, tuple[int, int]] = {}

    def run(prefetch: str) -> float:
        options = {"address": address, "on_error": "raise", "timeout": 1800}
        env = {"LAZYFX_PREFETCH": prefetch}
        job = Job(told={"backend": "lazyfx", "options": options}, env=env, folder=model)
        return bench.run(job, LAZYFX, WARM, 1).first_step

    run("true")  # cold
    for _ in range(rounds):
        for prefetch, found in seconds.items():
            before = counts(server)
            found.append(run(prefetch))
            told[prefetch] = tuple(b - a for a, b in zip(before, counts(server), strict=True))  # type: ignore[assignment]
    for prefetch, found in seconds.items():
        median, (calls, size) = statistics.median(found), told[prefetch]
        sys.stdout.write(
            f"{bench.model} prefetch={prefetch}: first step {median:.3f} s "
            f"({min(found):.3f}-{max(found):.3f}), {calls} calls, {size} bytes\n"
        )
        sys.stdout.flush()


def counts(server: NativeServer) -> tuple[int, int]:
    """Calls, and bytes of native artifacts, so far."""
    with urllib.request.urlopen(server.metrics_url, timeout=60) as response:
        text = response.read().decode()
    return tuple(int(sum(map(float, each.findall(text)))) for each in (_CALLS, _BYTES))  # type: ignore[return-value]


@contextlib.contextmanager
def delayed(address: str, milliseconds: float) -> Iterator[str]:
    """An address behind which what is sent arrives later; yields it."""
    if not milliseconds:
        yield address
        return
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                host, _, port = address.rpartition(":")
                server = socket.create_connection((host, int(port)))
                for source, sink in ((client, server), (server, client)):
                    pass_on(source, sink, milliseconds / 1000)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def pass_on(source: socket.socket, sink: socket.socket, seconds: float) -> None:
    """Pass bytes on in threads, each after the same delay, whatever their number."""
    waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

    def read() -> None:
        data = b"first"
        while data:
            data = b""
            with contextlib.suppress(OSError):
                data = source.recv(256 * 1024)
            waiting.put((time.monotonic() + seconds, data))

    def write() -> None:
        with contextlib.suppress(OSError):
            while (item := waiting.get())[1]:
                time.sleep(max(0.0, item[0] - time.monotonic()))
                sink.sendall(item[1])
            sink.shutdown(socket.SHUT_WR)

    for work in (read, write):
        threading.Thread(target=work, daemon=True).start()


if __name__ == "__main__":
    main()

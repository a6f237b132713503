"""`python -m bench.training`: time to the first training step for N ranks, six ways.

Every way starts each rank with an empty disk, except the one that is about a warm disk. CPU
seconds are of all ranks and, for lazyfx, of the server too, from the model to the end of the
first step. All compilers run one at a time in each process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.process_cpu import tree_seconds
from bench.training_server import NativeServer, native_server

WAYS = ("local cold", "local disk warm", "mega-cache", "redis", "lazyfx cold", "lazyfx warm")


@dataclass(frozen=True)
class Result:
    """One way with one number of ranks.

    Attributes:
        way: One of `WAYS`.
        ranks: Processes at a time.
        first_step: Median seconds to the end of the first step.
        cpu: CPU seconds of all ranks.
        server_cpu: CPU seconds of the server and its workers.
        compiles: Native compiles of the server.
    """

    way: str
    ranks: int
    first_step: float
    cpu: float
    server_cpu: float = 0.0
    compiles: int = 0


class Bench:
    """Runs ranks in folders of their own.

    Args:
        folder: For everything; removed by the caller.
        model: Name in tests/models.py.
        layers: Of the model.
    """

    def __init__(self, folder: Path, model: str, layers: int) -> None:
        self._folder = folder
        self._job = {"model": model, "layers": layers}
        self._runs = 0

    def run(
        self,
        ranks: int,
        *,
        folder: Path | None = None,
        env: dict[str, str] | None = None,
        **job: Any,
    ) -> tuple[float, float]:
        """Run ranks at the same time; median seconds and all CPU seconds of their first step."""
        self._runs += 1
        base = folder or self._folder / f"run{self._runs}"
        processes = [self._start(base / str(i), env or {}, job) for i in range(ranks)]
        told = []
        for process in processes:
            output, errors = process.communicate(timeout=1800)
            if process.returncode:
                raise RuntimeError(errors[-4000:])
            told.append(json.loads(output.splitlines()[-1]))
        if folder is None:
            shutil.rmtree(base, ignore_errors=True)
        return statistics.median(t["seconds"] for t in told), sum(t["cpu"] for t in told)

    def _start(
        self, folder: Path, env: dict[str, str], job: dict[str, Any]
    ) -> subprocess.Popen[str]:
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        told = json.dumps({**self._job, **job})
        return subprocess.Popen(
            [sys.executable, "-m", "bench.training_rank", told],
            env={
                **os.environ,
                "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
                # Inductor keeps precompiled headers in the user's temporary folder.
                "TMPDIR": str(folder / "tmp"),
                "TORCHINDUCTOR_COMPILE_THREADS": "1",
                "OMP_NUM_THREADS": "1",
                **env,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@contextlib.contextmanager
def filled_peers(bench: Bench, folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A mega-cache file and a Redis, both filled by one local run; yields file and variables."""
    with redis_server() as env:
        bench.run(1, backend="inductor", env=env, save=str(folder / "mega"))
        yield folder / "mega", env


def measure(
    bench: Bench, folder: Path, way: str, ranks: int, peers: tuple[Path, dict[str, str]] | None
) -> Iterator[Result]:
    """The results of one way; lazyfx cold gives lazyfx warm too."""
    if way == "local cold":
        yield Result(way, ranks, *bench.run(ranks, backend="inductor"))
    elif way == "local disk warm":
        kept = folder / f"disk{ranks}"
        bench.run(ranks, folder=kept, backend="inductor")
        yield Result(way, ranks, *bench.run(ranks, folder=kept, backend="inductor"))
        shutil.rmtree(kept)
    elif way == "mega-cache" and peers:
        yield Result(way, ranks, *bench.run(ranks, backend="inductor", load=str(peers[0])))
    elif way == "redis" and peers:
        yield Result(way, ranks, *bench.run(ranks, backend="inductor", env=peers[1]))
    elif way == "lazyfx cold":
        with native_server(folder / f"store{ranks}") as server:
            for name in ("lazyfx cold", "lazyfx warm"):
                yield through(bench, server, name, ranks)


def through(bench: Bench, server: NativeServer, way: str, ranks: int) -> Result:
    """One run of all ranks through a server."""
    cpu, compiles = tree_seconds(server.pid), server.compiles()
    options = {"address": server.address, "on_error": "raise", "timeout": 1800}
    seconds, ranks_cpu = bench.run(ranks, backend="lazyfx", options=options)
    return Result(
        way, ranks, seconds, ranks_cpu, tree_seconds(server.pid) - cpu, server.compiles() - compiles
    )


@contextlib.contextmanager
def redis_server() -> Iterator[dict[str, str]]:
    """A real Redis, empty; yields what tells torch to use it."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise RuntimeError("no redis-server here: apt-get install redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--port", str(port), "--save", "", "--bind", "127.0.0.1"]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        try:
            time.sleep(1.0)
            yield {
                "TORCHINDUCTOR_FX_GRAPH_REMOTE_CACHE": "1",
                "TORCHINDUCTOR_AUTOGRAD_REMOTE_CACHE": "1",
                "TORCHINDUCTOR_REDIS_URL": f"redis://127.0.0.1:{port}",
            }
        finally:
            process.terminate()
            process.wait(20)


def table(results: Sequence[Result], title: str) -> Table:
    """One line for each way and number of ranks; ratios are to local cold with as many ranks."""
    made = Table(title=title, title_justify="left")
    for heading in (
        "way",
        "ranks",
        "first step s",
        "/ cold",
        "CPU s",
        "server",
        "/ one cold",
        "compiles",
    ):
        made.add_column(heading, justify="left" if heading == "way" else "right")
    cold = {r.ranks: r for r in results if r.way == "local cold"}
    one = cold.get(1)
    for r in sorted(results, key=lambda r: (r.ranks, WAYS.index(r.way))):
        peer = cold.get(r.ranks)
        made.add_row(
            r.way,
            str(r.ranks),
            f"{r.first_step:.1f}",
            f"{r.first_step / peer.first_step:.2f}" if peer else "",
            f"{r.cpu + r.server_cpu:.1f}",
            f"{r.server_cpu:.1f}" if r.server_cpu else "",
            f"{(r.cpu + r.server_cpu) / one.cpu:.2f}" if one else "",
            str(r.compiles) if r.way.startswith("lazyfx") else "",
        )
    return made


def main() -> None:
    """Measure, print the table, write the numbers where asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    parser.add_argument("--ranks", default="1,2,4", help="numbers of ranks, e.g. 1,4")
    parser.add_argument("--model", default="bert", help="a model of tests/models.py")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--only", choices=WAYS, action="append", help="this way only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    chosen = parser.parse_args()
    results: list[Result] = []
    ways = chosen.only or WAYS[:-1]
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="lazyfx-bench-"))
        bench = Bench(Path(name), chosen.model, chosen.layers)
        peers = None
        if {"mega-cache", "redis"} & set(ways):
            peers = stack.enter_context(filled_peers(bench, Path(name)))
        for ranks in map(int, chosen.ranks.split(",")):
            for way in ways:
                for result in measure(bench, Path(name), way, ranks, peers):
                    sys.stderr.write(f"bench: {result}\n")
                    results.append(result)
                    if chosen.json:
                        chosen.json.write_text(json.dumps([asdict(r) for r in results], indent=1))
    title = f"{chosen.model}, {chosen.layers} layers, {os.cpu_count()} cores"
    Console(width=110).print(table(results, title))


if __name__ == "__main__":
    main()

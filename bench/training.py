"""`python -m bench.training`: time to the first training step of N ranks, in six ways.

Each rank starts with an empty disk, except in the way that measures a warm disk. CPU seconds are
totals of all ranks and, for lazyfx, of the server, from building the model to the end of the first
step. In each process, compilers run one at a time.

For each number of ranks, all ways run in turn, the warm ones several times; `--rounds` repeats
everything. With `--json FILE`, results are saved, and an interrupted run resumes with the next
number of ranks.
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
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.process_cpu import tree_seconds
from bench.training_server import NativeServer, native_server
from bench.training_table import (  # fmt: skip
    COLD,
    DISK,
    LOCAL,
    MEGA,
    REDIS,
    WARM,
    WAYS,
    Sample,
    Samples,
    goals,
    table,
)

Peers = tuple[Path, dict[str, str]]


class Bench:
    """Runs ranks in their own folders.

    Args:
        folder: For all files; removed by the caller.
        model: Name in tests/models.py.
        layers: Number of layers.
    """

    def __init__(self, folder: Path, model: str, layers: int) -> None:
        self.folder = folder
        self.model = model
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
        """Run ranks in parallel; returns median seconds and total CPU seconds of the first step."""
        self._runs += 1
        base = folder or self.folder / f"run{self._runs}"
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

    def through(self, server: NativeServer, way: str, ranks: int) -> Sample:
        """One run of all ranks through a server."""
        cpu, compiles = tree_seconds(server.pid), server.compiles()
        options = {"address": server.address, "on_error": "raise", "timeout": 1800}
        seconds, ranks_cpu = self.run(ranks, backend="lazyfx", options=options)
        server_cpu = tree_seconds(server.pid) - cpu
        return Sample(way, ranks, seconds, ranks_cpu, server_cpu, server.compiles() - compiles)

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
                # Inductor stores precompiled headers in the user's temporary folder.
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
def filled_peers(bench: Bench) -> Iterator[Peers]:
    """A mega-cache file and a Redis server, filled by one local run; yields file and variables."""
    with redis_server() as env:
        mega = bench.folder / "mega"
        bench.run(1, backend="inductor", env=env, save=str(mega))
        yield mega, env


@contextlib.contextmanager
def redis_server() -> Iterator[dict[str, str]]:
    """A real, empty Redis server; yields the variables that make torch use it."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise RuntimeError("redis-server is not installed: apt-get install redis-server")
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


def measure(
    bench: Bench, ranks: int, ways: set[str], peers: Peers | None, warm_runs: int
) -> Iterator[Sample]:
    """All ways with one number of ranks. Cold runs fill what the warm ones use."""
    kept = bench.folder / f"disk{ranks}"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, kept, ignore_errors=True)
        server = None
        if {LOCAL, DISK} & ways:
            yield Sample(LOCAL, ranks, *bench.run(ranks, folder=kept, backend="inductor"))
        if {COLD, WARM} & ways:
            store = stack.enter_context(tempfile.TemporaryDirectory(dir=bench.folder))
            server = stack.enter_context(native_server(Path(store)))
            yield bench.through(server, COLD, ranks)
        for _ in range(warm_runs):
            if DISK in ways:
                yield Sample(DISK, ranks, *bench.run(ranks, folder=kept, backend="inductor"))
            if server is not None and WARM in ways:
                yield bench.through(server, WARM, ranks)
    if peers is not None and MEGA in ways:
        yield Sample(MEGA, ranks, *bench.run(ranks, backend="inductor", load=str(peers[0])))
    if peers is not None and REDIS in ways:
        yield Sample(REDIS, ranks, *bench.run(ranks, backend="inductor", env=peers[1]))


class Kept:
    """Samples saved to a file, by round and number of ranks, so that an interrupted run can resume.

    Args:
        path: The file; None keeps them only in memory.
        conditions: What is measured; a file with other conditions is an error.
    """

    def __init__(self, path: Path | None, conditions: dict[str, Any]) -> None:
        self._path = path
        self._told: dict[str, Any] = {"conditions": conditions, "samples": {}}
        if path is not None and path.exists():
            found = json.loads(path.read_text())
            if found.get("conditions") != conditions:
                raise SystemExit(
                    f"{path} has samples of {found.get('conditions')}; use another file"
                )
            self._told = found

    def __contains__(self, block: str) -> bool:
        return block in self._told["samples"]

    def add(self, block: str, samples: list[Sample]) -> None:
        """Save the samples of one round with one number of ranks."""
        self._told["samples"][block] = [asdict(sample) for sample in samples]
        if self._path is not None:
            temporary = self._path.with_suffix(".part")
            temporary.write_text(json.dumps(self._told, indent=1))
            temporary.replace(self._path)

    def samples(self) -> Samples:
        """All samples."""
        return Samples([Sample(**s) for block in self._told["samples"].values() for s in block])


def main() -> None:
    """Measure, print the table and the goals, and optionally write the numbers to a file."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    parser.add_argument("--ranks", default="1,2,4", help="numbers of ranks, e.g. 1,4")
    parser.add_argument("--model", default="bert", help="a model of tests/models.py")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="how often everything is repeated")
    parser.add_argument("--warm-runs", type=int, default=3, help="runs of each warm way")
    parser.add_argument("--only", choices=WAYS, action="append", help="only this way")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="save the numbers here; resume from it"
    )
    chosen = parser.parse_args()
    ways = set(chosen.only or WAYS)
    conditions = {"model": chosen.model, "layers": chosen.layers, "ways": sorted(ways)}
    kept = Kept(chosen.json, conditions)
    blocks = [
        (round_, ranks) for round_ in range(chosen.rounds) for ranks in _numbers(chosen.ranks)
    ]
    missing = [block for block in blocks if str(block) not in kept]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lazyfx-bench-")))
        bench = Bench(folder, chosen.model, chosen.layers)
        peers = None
        if missing and {MEGA, REDIS} & ways:
            peers = stack.enter_context(filled_peers(bench))
        for block in missing:
            samples = []
            for sample in measure(bench, block[1], ways, peers, chosen.warm_runs):
                sys.stderr.write(f"bench: {sample}\n")
                samples.append(sample)
            kept.add(str(block), samples)
    title = f"{chosen.model}, {chosen.layers} layers, {os.cpu_count()} cores; median (least-most)"
    Console(width=120).print(table(kept.samples(), title))
    sys.stdout.writelines(f"{line}\n" for line in goals(kept.samples()))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()

"""`python -m bench.training`: time to the first training step of N ranks, with five kinds of cache.

The caches are those of bench/training_peers.py. With each, four jobs of all ranks follow each
other: "cold" fills the empty cache, "warm" is the same job again, "one literal" has another epsilon
in every normalization, and "twice the layers" is that. Only the first of them fills what the others
find: the changed jobs are run once each.

Each rank starts with an empty disk, except with the local disk cache. CPU seconds are totals of all
ranks and of the cache's own processes, from building the model to the end of the first step. In
each process, compilers run one at a time.

For each number of ranks, the caches take turns, job by job; `--rounds` repeats everything with
empty caches. With `--json FILE`, results are saved, and an interrupted run resumes with the next
number of ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.training_peers import Job, lazyfx, local_disk, mega_cache, redis, sccache
from bench.training_table import (  # fmt: skip
    COLD,
    DEEPER,
    DISK,
    LAZYFX,
    LITERAL,
    MEGA,
    PEERS,
    REDIS,
    SCCACHE,
    STARTS,
    WARM,
    Sample,
    Samples,
    goals,
    table,
)

_OPENED: Mapping[str, Callable[[Path], AbstractContextManager[Job]]] = {
    DISK: local_disk,
    MEGA: mega_cache,
    REDIS: redis,
    SCCACHE: sccache,
    LAZYFX: lazyfx,
}
_EPSILON = 3e-5


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
        self._layers = layers
        self._runs = 0

    def run(self, job: Job, peer: str, start: str, ranks: int) -> Sample:
        """Run all ranks of one job in parallel."""
        self._runs += 1
        base = job.folder or self.folder / f"run{self._runs}"
        told = {"model": self.model, "layers": self._layers, **job.told}
        if start == COLD:
            told |= job.told_first
        elif start == LITERAL:
            told["epsilon"] = _EPSILON
        elif start == DEEPER:
            told["layers"] = 2 * self._layers
        cpu, compiles = job.server_cpu(), job.compiles()
        processes = [_start(base / str(i), job.env, told) for i in range(ranks)]
        answers = []
        for process in processes:
            output, errors = process.communicate(timeout=1800)
            if process.returncode:
                raise RuntimeError(errors[-4000:])
            answers.append(json.loads(output.splitlines()[-1]))
        if job.folder is None:
            shutil.rmtree(base, ignore_errors=True)
        return Sample(
            peer,
            start,
            ranks,
            statistics.median(answer["seconds"] for answer in answers),
            sum(answer["cpu"] for answer in answers),
            job.server_cpu() - cpu,
            job.compiles() - compiles,
        )


def _start(folder: Path, env: dict[str, str], told: dict[str, Any]) -> subprocess.Popen[str]:
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "bench.training_rank", json.dumps(told)],
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


def measure(
    bench: Bench, ranks: int, peers: list[str], starts: list[str], warm_runs: int
) -> Iterator[Sample]:
    """All peers with one number of ranks, each with an empty cache."""
    with contextlib.ExitStack() as stack:
        opened = {}
        for peer in peers:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=bench.folder))
            opened[peer] = stack.enter_context(_OPENED[peer](Path(folder)))
        for start in starts:
            for _ in range(warm_runs if start == WARM else 1):
                for peer, job in opened.items():
                    yield bench.run(job, peer, start, ranks)


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
    parser.add_argument("--warm-runs", type=int, default=3, help="runs of each warm job")
    parser.add_argument("--only", choices=PEERS, action="append", help="only this cache")
    parser.add_argument(
        "--starts", default=",".join(STARTS), help="jobs, the first of which fills the caches"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="save the numbers here; resume from it"
    )
    chosen = parser.parse_args()
    peers = [peer for peer in PEERS if peer in (chosen.only or PEERS)]
    starts = [start for start in STARTS if start in (COLD, *chosen.starts.split(","))]
    conditions = {
        "model": chosen.model, "layers": chosen.layers, "peers": peers, "starts": starts,
    }  # fmt: skip
    kept = Kept(chosen.json, conditions)
    blocks = [
        (round_, ranks) for round_ in range(chosen.rounds) for ranks in _numbers(chosen.ranks)
    ]
    missing = [block for block in blocks if str(block) not in kept]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lazyfx-bench-")))
        bench = Bench(folder, chosen.model, chosen.layers)
        for block in missing:
            samples = []
            for sample in measure(bench, block[1], peers, starts, chosen.warm_runs):
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

"""`python -m bench.cold_compile`: where Python's seconds of a cold native compile go.

Runs the native job of one training step as a worker does, in a fork of a process that has imported
what a server's fork server imports, but without compiling C++: every request for a kernel is
answered at once with bytes that nobody loads. So the times are those of our code, of AOTAutograd
and of Inductor alone. Two parents are compared in turns: one that has only imported Inductor, and
one that has also compiled a small graph, as a server's has. All times are CPU seconds; a phase does
not include the phases within it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PARENTS = {
    "imported": "lazyfx_server.jobs.native.native_job",
    "prepared": "lazyfx_server.jobs.native.ahead.prepared_inductor",
}
_SOURCES = "digest of the C++ sources"
_SERVER_PRELOAD = "lazyfx_server.jobs.preload"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.cold_compile", description=__doc__)
    parser.add_argument("--model", default="bert", help="a model of tests/models.py")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="jobs of each parent in each round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--capture", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--parent", help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.capture:
        chosen.capture.write_bytes(captured(chosen.model, chosen.layers))
        return
    if chosen.parent:
        json.dump(run_parent(chosen.parent, chosen.job, chosen.jobs), sys.stdout)
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in PARENTS}
    with tempfile.TemporaryDirectory(prefix="lazyfx-bench-") as folder:
        job = Path(folder, "job")
        _again("--model", chosen.model, "--layers", str(chosen.layers), "--capture", str(job))
        for _ in range(chosen.rounds):
            for name, samples in found.items():
                told = _again("--parent", name, "--job", str(job), "--jobs", str(chosen.jobs))
                samples.extend(json.loads(told))
                sys.stderr.write(f"bench: {name}: {samples[-1]['all of the job']:.2f} s\n")
    digests = {sample.pop(_SOURCES) for samples in found.values() for sample in samples}
    assert len(digests) == 1, "both must write the same C++"
    Console(width=110).print(table(found, f"{chosen.model}, {chosen.layers} layers"))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1))


def _again(*arguments: str) -> str:
    """Run this program in a new process, with the variables of a fork server."""
    single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "bench.cold_compile", *arguments],
        env={**os.environ, **single, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def captured(model: str, layers: int) -> bytes:
    """The native job of a model's training step, as a server sends it to a worker."""
    import torch

    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    import models

    from lazyfx.backend.dynamo_graphs import flatten
    from lazyfx.capture import remembering
    from lazyfx.shared.native.native_request import native_request
    from lazyfx.v1 import compiler_pb2 as pb
    from lazyfx_server.v1 import worker_pb2 as worker

    jobs = []

    def keep(module: Any, inputs: Any) -> Any:
        flat = flatten(module, inputs)
        request = native_request(flat.devices, None, {})
        job = worker.NativeJob(
            kind=pb.ARTIFACT_KIND_INDUCTOR, request=request, made_on=request.target
        )
        job.graph.graph.body = remembering.encode(flat.module).body
        jobs.append(job)
        return module.forward

    module, example = getattr(models, model)(layers=layers, width=64)
    torch.compile(module.train(), backend=keep)(**example)
    (job,) = jobs
    return worker.Job(native=job).SerializeToString()


def run_parent(name: str, job: Path, jobs: int) -> list[dict[str, float]]:
    """Import what a fork server imports, and run jobs in forks; CPU seconds by phase of each."""
    import importlib

    imports = {}
    for module in (_SERVER_PRELOAD, PARENTS[name]):
        before = time.process_time()
        importlib.import_module(module)
        imports[f"once: {'Inductor' if module != _SERVER_PRELOAD else 'torch, passes'}"] = (
            time.process_time() - before
        )
    from lazyfx_server.jobs.native.toolchain.compiler import find_compiler

    compiler, data = find_compiler(), job.read_bytes()
    made = []
    for _ in range(jobs):
        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            with os.fdopen(writing, "w") as pipe:
                json.dump(run_job(compiler, data), pipe)
                pipe.flush()
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            made.append({**imports, **json.load(pipe)})
        os.waitpid(pid, 0)
    return made


def run_job(compiler: Any, data: bytes) -> dict[str, float]:
    """Run a native job in this process; CPU seconds by phase."""
    import gc
    import hashlib

    from bench.torch_phases import Stopwatch, watching_phases
    from lazyfx_server.execution.job_calls import set_server_call
    from lazyfx_server.jobs.native.confinement import Confinement
    from lazyfx_server.jobs.native.worker_entry import run_native_job
    from lazyfx_server.v1 import worker_pb2 as worker

    sources = set()

    def answer(question: bytes) -> bytes:
        digest = hashlib.sha256(question).digest()
        sources.add(digest)
        return worker.BuildResult(output=b"\x7fELF" + digest, key=digest).SerializeToString()

    gc.set_threshold(200_000)  # as `worker_loop`
    set_server_call(answer)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="lazyfx-bench-") as folder:
        job = worker.Job.FromString(data)
        job.native.cache, job.native.progress = folder, f"{folder}/progress"
        before = time.process_time()
        with watching_phases(watch):
            result = run_native_job(compiler, Confinement(None), job.SerializeToString())
        spent = time.process_time() - before
        answered = worker.JobResult.FromString(result)
    if answered.HasField("error"):
        raise RuntimeError(answered.error.message)
    told = int.from_bytes(hashlib.sha256(b"".join(sorted(sources))).digest()[:6], "big")
    return {
        _SOURCES: told,
        **watch.seconds,
        "the rest": spent - sum(watch.seconds.values()),
        "all of the job": spent,
    }


def table(found: dict[str, list[dict[str, float]]], title: str) -> Table:
    """Medians by phase, a column for each parent."""
    made = Table(title=f"{title}; CPU seconds, median (least to most)")
    made.add_column("phase")
    for name, samples in found.items():
        made.add_column(f"{name}, {len(samples)} jobs", justify="right")
    phases = dict.fromkeys(phase for samples in found.values() for s in samples for phase in s)
    for phase in phases:
        cells = []
        for samples in found.values():
            seconds = [sample.get(phase, 0.0) for sample in samples]
            middle = statistics.median(seconds)
            cells.append(f"{middle:.2f} ({min(seconds):.2f}-{max(seconds):.2f})")
        made.add_row(phase, *cells)
    return made


if __name__ == "__main__":
    main()

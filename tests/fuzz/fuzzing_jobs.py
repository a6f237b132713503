"""Mutated graphs through the jobs of a worker: passes, and every artifact of what comes out.

    python tests/fuzz/fuzzing_jobs.py --cases 2000 --seed 1

As `fuzzing.py`, one step further: what the checks take is compiled, and its code, pickle,
package, picture, source, TorchScript and exported program are asked for. A refusal must be the
request's fault; an internal error, or a generated source that is not its graph, is a failure.
"""

# ruff: noqa: T201 - a script that says what it did

from __future__ import annotations

import argparse
import collections
import json
import logging
import random
import sys
import warnings

import torch
from fuzzing import MAX_NODES, Mutator, corpus
from google.protobuf.message import DecodeError as ProtobufError

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.jobs.graph_job import run_job
from lazyfx_server.settings.limits import PassLimits
from lazyfx_server.v1 import worker_pb2 as worker

_PIPELINES = (
    ("dead_code_elimination", "common_subexpression_elimination", "constant_fold"),
    ("shape_propagation", "remove_dropout", "simplify_arithmetic"),
    ("decompose",),
    ("functionalize",),
    ("split_module",),
    (),
)
_KINDS = (
    pb.ARTIFACT_KIND_CODE,
    pb.ARTIFACT_KIND_SOURCE,
    pb.ARTIFACT_KIND_PICKLE,
    pb.ARTIFACT_KIND_PACKAGE,
    pb.ARTIFACT_KIND_PICTURE,
    pb.ARTIFACT_KIND_TORCHSCRIPT,
    pb.ARTIFACT_KIND_EXPORTED_PROGRAM,
)
_SIZES = (-(2**63), -(2**40), -1, 0, 1, 2, 3, 7, 2**20, 2**31, 2**40, 2**62, 2**63 - 1)
_FAULTS = (worker.JOB_ERROR_KIND_INTERNAL, worker.JOB_ERROR_KIND_SOURCE)


def wild_symbols(draw: random.Random, graphs: list[graph_pb2.Graph]) -> bytes:
    """A graph of symbolic sizes, with other hints and bounds; it gets past more checks."""
    graph, body = graph_pb2.Graph(), graph_pb2.GraphBody()
    graph.CopyFrom(draw.choice(graphs))
    body.ParseFromString(graph.body)
    row = draw.choice(body.symbols)
    for name in draw.sample(("minimum", "maximum", "hint"), draw.randrange(1, 4)):
        setattr(row, name, draw.choice(_SIZES))
    graph.body = body.SerializeToString(deterministic=True)
    return graph.SerializeToString()


def _compile(graph: graph_pb2.Graph, passes: tuple[str, ...], verify: bool) -> worker.Job:
    job = worker.Job()
    job.compile.body = graph.body
    if graph.HasField("presentation"):
        job.compile.presentation.CopyFrom(graph.presentation)
    limits = PassLimits(
        max_nodes=MAX_NODES, max_folded_bytes=2**24, max_matches=100, max_pass_seconds=5
    )
    job.compile.limits.CopyFrom(worker.JobLimits(**dict(limits)))
    for name in passes:
        spec = job.compile.passes.add(name=name)
        if name == "split_module":
            spec.options.add(name="max_nodes").value.integer = 2
    job.compile.verify = verify
    return job


def _fault(job: worker.Job) -> tuple[str | None, worker.JobResult]:
    result = worker.JobResult.FromString(run_job(job.SerializeToString()))
    if result.HasField("error") and result.error.kind in _FAULTS:
        return result.error.message, result
    return None, result


def one(data: bytes, number: int, counts: collections.Counter[str]) -> list[str]:
    """Run one case; the faults that it met."""
    graph = graph_pb2.Graph()
    try:
        graph.ParseFromString(data)
    except (ProtobufError, UnicodeDecodeError):
        return []
    passes = _PIPELINES[number // 2 % len(_PIPELINES)]
    fault, compiled = _fault(_compile(graph, passes, verify=number % 7 == 0))
    if fault is not None:
        return [f"{passes}: {fault} {data.hex()}"]
    if compiled.HasField("error"):
        counts["refused"] += 1
        return []
    counts["compiled"] += 1
    faults = []
    for kind in _KINDS:
        job = worker.Job()
        job.render.kind = kind
        job.render.graph.CopyFrom(compiled.compile.graph)
        if graph.HasField("presentation"):
            job.render.presentation.CopyFrom(graph.presentation)
        job.render.constants.extend(compiled.compile.constants)
        fault, rendered = _fault(job)
        counts["rendered" if rendered.HasField("render") else "not rendered"] += 1
        if fault is not None:
            faults.append(f"{passes} {pb.ArtifactKind.Name(kind)}: {fault} {data.hex()}")
    return faults


def main() -> None:
    """Read the command line, run, print one line of JSON; exit with 1 after a failure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    graphs = corpus()
    mutator = Mutator(options.seed, graphs)
    symbolic = [g for g in graphs if graph_pb2.GraphBody.FromString(g.body).symbols]
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    for number in range(options.cases):
        wild = number % 2
        data = wild_symbols(mutator.random, symbolic) if wild else mutator.case()
        faults += one(data, number, counts)
    for fault in faults:
        print(fault[:20000], file=sys.stderr)
    print(json.dumps({"cases": options.cases, "faults": len(faults), **counts}))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()

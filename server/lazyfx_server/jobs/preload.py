"""Preload module of the fork server: imports the worker and builds its tables.

The allow-table of targets, torch's schemas and fake tensors are set up on first use, which takes a
few tenths of a second. Done here once, it does not delay the first job of each worker. A confined
worker may also be unable to do some of the imports: torch 2.11 looks for a folder for temporary
files before it exports.
"""

from __future__ import annotations

import gc
import os
import sys

import torch
import torch._dynamo
import torch._functorch.partitioners
from torch.fx import symbolic_trace

from lazyfx.shared import wire
from lazyfx.shared.wire.targets import allow_table
from lazyfx.shared.wire.targets.user_targets import parse
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.jobs.graph_job import run_job
from lazyfx_server.passes import PassLimits
from lazyfx_server.passes.analysis.torch_device_guards import guard_absent_devices
from lazyfx_server.security import allowed
from lazyfx_server.telemetry.plain_text import LOG_FORMAT_VARIABLE, PlainStream, log_to
from lazyfx_server.v1 import worker_pb2 as worker


def warm_up() -> None:
    """Run one small job of each kind and discard the results."""
    graph = symbolic_trace(lambda x: torch.relu(x) + torch.relu(x))
    next(iter(graph.graph.nodes)).meta["val"] = torch.empty(1, device="meta")
    encoded = wire.encode(graph)
    passes = ["common_subexpression_elimination", "dead_code_elimination", "shape_propagation"]
    limits = PassLimits()
    compiled = worker.CompileJob(
        body=encoded.body,
        passes=[pb.PassSpec(name=name) for name in passes],
        limits=worker.JobLimits(**dict(limits)),
    )
    result = worker.JobResult.FromString(run_job(worker.Job(compile=compiled).SerializeToString()))
    kinds = (pb.ARTIFACT_KIND_CODE, pb.ARTIFACT_KIND_PICTURE, pb.ARTIFACT_KIND_EXPORTED_PROGRAM)
    for kind in kinds:
        rendering = worker.RenderJob(
            kind=kind, graph=result.compile.graph, max_source_bytes=limits.max_source_bytes
        )
        run_job(worker.Job(render=rendering).SerializeToString())


if more := os.environ.get(allowed.VARIABLE):
    allowed.allow_user_targets(parse(more))
# Workers write to the server's log, including torch's messages about graphs.
sys.stderr = PlainStream(sys.stderr)
log_to(sys.stderr, "warning", os.environ.get(LOG_FORMAT_VARIABLE, "text"))
allow_table.functions()
allow_table.register_late()
warm_up()
# These objects live until the end: a worker's garbage collector need not traverse them again.
guard_absent_devices()
gc.collect()
gc.freeze()

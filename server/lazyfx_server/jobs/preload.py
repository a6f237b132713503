"""What the fork server imports: the worker, with its tables built.

The allow-table of targets, torch's schemas and fake tensors are set up on first use,
which takes a few tenths of a second. Done here, once, no worker's first job pays for it. What
torch imports on the way it may not be able to import in a confined worker: torch 2.11 looks for
a folder for temporary files before it exports.
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
from lazyfx_server.security import allowed
from lazyfx_server.telemetry.plain_text import LOG_FORMAT_VARIABLE, PlainStream, log_to
from lazyfx_server.v1 import worker_pb2 as worker


def warm_up() -> None:
    """Run one small job of each kind; its results are thrown away."""
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
# Workers write to the server's log, also what torch says of graphs.
sys.stderr = PlainStream(sys.stderr)
log_to(sys.stderr, "warning", os.environ.get(LOG_FORMAT_VARIABLE, "text"))
allow_table.functions()
allow_table.register_late()
warm_up()
# What is here now stays until the end: the collector of a worker need not go over it again.
gc.collect()
gc.freeze()

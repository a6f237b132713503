"""One native job: compiles a graph under given conditions to an artifact of the requested kind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from lazyfx.shared import wire
from lazyfx.shared.native.native_request import conditions_digest
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.jobs.artifact_kinds import ARTIFACT_KINDS
from lazyfx_server.jobs.native.aot_inductor import make_package
from lazyfx_server.jobs.native.conditions import (
    apply_request,
    build_target,
    fake_inputs,
    host_settings,
)
from lazyfx_server.jobs.native.equal_blocks.outlining import call_equal_blocks_once
from lazyfx_server.jobs.native.equal_blocks.regions import name_regions
from lazyfx_server.jobs.native.float_inputs import recall_items
from lazyfx_server.jobs.native.inductor import make_bundle
from lazyfx_server.jobs.native.progress import Progress
from lazyfx_server.jobs.native.source_checks import checked_sources
from lazyfx_server.jobs.native.tokenized_graph import without_texts
from lazyfx_server.jobs.native.toolchain.subprocess_hooks import UnsupportedCommand
from lazyfx_server.jobs.native.torch_inductor_codegen import fresh_fake_mode
from lazyfx_server.jobs.native.torch_stand_in_groups import register_stand_ins
from lazyfx_server.security.native_source import NativeSourceRefused
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)

_Maker = Callable[
    [GraphModule, list[Any], FakeTensorMode, dict[str, Any]],
    "pb.NativeBundle | pb.AotPackage",
]
_MAKERS: Final[dict[int, _Maker]] = {
    pb.ARTIFACT_KIND_INDUCTOR: make_bundle,
    pb.ARTIFACT_KIND_AOT_INDUCTOR: make_package,
}


def make_artifact(job: worker.NativeJob) -> worker.NativeResult:
    """Compile a graph to a serialized NativeBundle or AotPackage.

    Raises:
        CannotCompile: Says why, and what the caller can do.
        LazyfxError: The request is malformed.
        NativeSourceRefused: Inductor's source looks unlike what it normally writes; it was not
            compiled.
    """
    started = perf_counter()
    outlining = _Outlining(job)
    try:
        result = _made(job, outlining)
    except NativeSourceRefused:
        raise
    except Exception as error:
        if not outlining.tried:
            raise
        kind = type(error).__name__
        _log.warning("%s with calls of equal blocks; the graph is compiled as a whole", kind)
        # What this try could not compile says nothing of the next one.
        UnsupportedCommand.first = ""
        result = _made(job, None)
    result.seconds = perf_counter() - started
    return result


class _Outlining:
    """Makes equal blocks of a job's graph calls, if the caller wants it, and it may be.

    Gradients are not computed for such calls, autocast changes what equal blocks do, and packages
    inline all calls.

    Attributes:
        tried: Whether the graph was changed, or may have been.
    """

    def __init__(self, job: worker.NativeJob) -> None:
        self._wanted = job.request.equal_blocks_once and job.kind == pb.ARTIFACT_KIND_INDUCTOR
        self.tried = False

    def apply(self, module: GraphModule, inputs: list[Any]) -> list[pb.EqualBlocks]:
        """Change the graph in place; returns what was found."""
        tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
        differentiates = torch.is_grad_enabled() and any(value.requires_grad for value in tensors)
        casts = any(torch.is_autocast_enabled(value.device.type) for value in tensors)
        if not self._wanted or differentiates or casts:
            return []
        self.tried = True
        found = call_equal_blocks_once(module)
        self.tried = bool(found)
        return found


def _made(job: worker.NativeJob, outlining: _Outlining | None) -> worker.NativeResult:
    progress = Progress(Path(job.progress))
    progress.stage("tracing")
    module = wire.decode(without_texts(graph_pb2.GraphBody.FromString(job.graph.graph.body)))
    register_stand_ins(module)
    mode = fresh_fake_mode()
    inputs = fake_inputs(module, mode)
    recall_items(module)
    name_regions(module)
    # Of a bundle, the server counts the kernels one by one; a package is compiled in one piece.
    if job.kind == pb.ARTIFACT_KIND_AOT_INDUCTOR:
        progress.stage("compiling")
    with apply_request(job.request), checked_sources():
        blocks = outlining.apply(module, inputs) if outlining else []
        made = _MAKERS[job.kind](module, inputs, mode, host_settings(job))
    progress.stage("packing")
    made.target.CopyFrom(build_target(job))
    made.conditions = conditions_digest(job.request)
    only_traced = isinstance(made, pb.NativeBundle) and bool(made.fixed_inputs)
    if only_traced:
        blocks = []  # Nothing was compiled, so neither once.
    if isinstance(made, pb.NativeBundle):
        made.equal_blocks.extend(blocks)
    return worker.NativeResult(
        data=made.SerializeToString(),
        media_type=ARTIFACT_KINDS[job.kind].media_type,
        only_traced=only_traced,
        repeated_blocks=sum(group.calls - 1 for group in blocks),
    )

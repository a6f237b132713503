"""One graph through Inductor: what the caller's process would have made, as an artifact."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from lazyfx import wire
from lazyfx.native import kernels, shapes
from lazyfx.native.requests import conditions_digest
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.native.conditions import (
    MOST_CHARACTERS,
    CannotCompile,
    as_asked,
    fake_inputs,
    made_on,
    own_settings,
    refuse_own_tensors,
)
from lazyfx_server.native.progress import Progress
from lazyfx_server.native.torch_names import compile_ahead, fresh_fake_mode
from lazyfx_server.v1 import worker_pb2 as worker

MEDIA_TYPE = "application/x-protobuf"


def compile_inductor(job: worker.NativeJob, progress: Progress) -> worker.NativeResult:
    """Compile a graph, forward and backward, to a serialized NativeBundle.

    Raises:
        CannotCompile: Says why, and what the caller can do.
        LazyfxError: The request is malformed.
    """
    started = perf_counter()
    progress.stage("tracing")
    module = wire.decode(graph_pb2.GraphBody.FromString(job.graph.graph.body))
    mode = fresh_fake_mode()
    inputs = fake_inputs(module, mode)
    refuse_own_tensors(module)
    with as_asked(job.request):
        bundle = _compile(module, inputs, mode, job, progress)
    progress.stage("packing")
    bundle.target.CopyFrom(made_on(job))
    bundle.conditions = conditions_digest(job.request)
    return worker.NativeResult(
        data=bundle.SerializeToString(),
        media_type=MEDIA_TYPE,
        seconds=perf_counter() - started,
    )


def _compile(
    module: GraphModule,
    inputs: list[Any],
    mode: FakeTensorMode,
    job: worker.NativeJob,
    progress: Progress,
) -> pb.NativeBundle:
    env = mode.shape_env
    assert env is not None, "fresh_fake_mode makes one"
    symbols = shapes.input_symbols(inputs)
    known = len(env.guards)
    with kernels.noted(progress.kernels) as libraries:
        try:
            compiled = compile_ahead(module, inputs, mode, own_settings(job))
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise CannotCompile(
                f"Inductor cannot compile this graph: {text[:MOST_CHARACTERS]}"
            ) from error
    if compiled is None:
        raise CannotCompile("torch cannot write what Inductor made of this graph as an artifact")
    return pb.NativeBundle(
        compiled=compiled,
        kernels=[
            pb.NativeKernel(source=source, library=Path(path).read_bytes())
            for source, path in sorted(libraries.items())
        ],
        guards=shapes.guards_of(env, symbols, known),
    )

"""One graph through Inductor: what the caller's process would have made, as an artifact."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from lazyfx import wire
from lazyfx.native import kernels, settings, shapes, states, target
from lazyfx.native.requests import conditions_digest
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.native.progress import Progress
from lazyfx_server.native.torch_names import compile_ahead, fresh_fake_mode
from lazyfx_server.v1 import worker_pb2 as worker

MEDIA_TYPE = "application/x-protobuf"
_MOST_CHARACTERS = 600


class CannotCompile(Exception):  # noqa: N818 - reads as what happened
    """Inductor cannot make an artifact of this graph, under these settings, on this machine."""


def compile_inductor(job: worker.NativeJob, progress: Progress) -> worker.NativeResult:
    """Compile a graph, forward and backward, to a serialized NativeBundle.

    Raises:
        CannotCompile: Says why, and what the caller can do.
        LazyfxError: The request is malformed.
    """
    started = perf_counter()
    request = job.request
    progress.stage("tracing")
    module = wire.decode(graph_pb2.GraphBody.FromString(job.graph.graph.body))
    mode = fresh_fake_mode()
    inputs = _fake_inputs(module, mode)
    wanted = settings.from_proto(request.settings)
    with ExitStack() as stack:
        states.enter_states(request.states, stack)
        stack.enter_context(settings.applied(wanted))
        if settings.configuration_digest() != request.configuration:
            raise CannotCompile(
                "settings of Inductor or AOTAutograd differ between this server and the caller in "
                "a way that does not travel; unset those that docs/training.md does not list"
            )
        bundle = _compile(module, inputs, mode, job, progress)
    progress.stage("packing")
    bundle.target.CopyFrom(job.made_on)
    if not request.target.accelerator:
        bundle.target.accelerator = ""
    bundle.conditions = conditions_digest(request)
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
    own: dict[str, Any] = {
        "compile_threads": max(1, job.compile_threads),
        "worker_start_method": "fork",
    }
    if job.made_on.vector_isa == target.likely_vector_isa():
        # It was compiled and loaded once to find out; that need not be done for each job.
        own["cpp.vec_isa_ok"] = True
    with kernels.noted(progress.kernels) as libraries:
        try:
            compiled = compile_ahead(module, inputs, mode, own)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise CannotCompile(
                f"Inductor cannot compile this graph: {text[:_MOST_CHARACTERS]}"
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


def _fake_inputs(module: GraphModule, mode: FakeTensorMode) -> list[Any]:
    """The values of placeholders; those of all nodes are put where torch looks for them.

    Raises:
        CannotCompile: An input has no description, or the graph has tensors of its own.
    """
    inputs = []
    for node in module.graph.nodes:
        value = wire.materialize(node, mode)
        if value is not None:
            node.meta["example_value"] = value
        if node.op == "placeholder":
            if value is None:
                raise CannotCompile("an input of the graph has no shape; send the graph with it")
            inputs.append(value)
        elif node.op == "get_attr" and isinstance(
            getattr(module, str(node.target), None), torch.Tensor
        ):
            raise CannotCompile("the graph has tensors of its own; make them inputs")
        elif node.op == "call_module":
            raise CannotCompile("the graph calls modules; capture it with torch.compile")
    return inputs

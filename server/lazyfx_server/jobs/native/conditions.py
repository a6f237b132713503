"""The conditions of a native compile: the caller's states and settings, and the inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from lazyfx.shared import wire
from lazyfx.shared.native import machine, torch_settings, tracing_state
from lazyfx.shared.native.configuration import read_configuration
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.v1 import worker_pb2 as worker

_MAX_CHARACTERS = 600
_MAX_SETTINGS = 8


class CannotCompile(Exception):  # noqa: N818 - reads as what happened
    """Inductor cannot compile this graph with these settings on this machine."""


def compiler_error(compiler: str, error: Exception) -> CannotCompile:
    """The exception to raise when a compiler raised `error`."""
    text = f"{type(error).__name__}: {error}"
    return CannotCompile(f"{compiler} cannot compile this graph: {text[:_MAX_CHARACTERS]}")


@contextmanager
def apply_request(request: pb.NativeRequest) -> Iterator[None]:
    """Apply the caller's states and settings within the block.

    Raises:
        CannotCompile: Another setting differs between this process and the caller's.
        LazyfxError: A state or setting is unknown.
    """
    wanted = torch_settings.from_proto(request.settings)
    with ExitStack() as stack:
        tracing_state.enter_states(request.states, stack)
        stack.enter_context(torch_settings.applied(wanted))
        _require_same_configuration(request)
        yield


def _require_same_configuration(request: pb.NativeRequest) -> None:
    here = read_configuration()
    if here.digest == request.configuration:
        return
    differences = here.differences(request.setting_digests)
    named = ", ".join(differences[:_MAX_SETTINGS]) or "the caller did not list them"
    if len(differences) > _MAX_SETTINGS:
        named += f" and {len(differences) - _MAX_SETTINGS} more"
    raise CannotCompile(
        "settings of Inductor or AOTAutograd that cannot be sent differ between the caller and "
        f"this server: {named}; give both the same values; docs/training.md lists the "
        f"settings that can be sent"
    )


def host_settings(job: worker.NativeJob) -> dict[str, Any]:
    """Settings specific to this machine that do not affect results."""
    own: dict[str, Any] = {
        # Kernels are requested in threads of our own (`kernel_requests`).
        "compile_threads": 1,
        "worker_start_method": "fork",
    }
    if job.made_on.vector_isa == machine.likely_vector_isa():
        # A probe was compiled and loaded once to determine this; no need to repeat it for each job.
        own["cpp.vec_isa_ok"] = True
    return own


def build_target(job: worker.NativeJob) -> pb.NativeTarget:
    """The target machine of a job's artifact."""
    found = pb.NativeTarget()
    found.CopyFrom(job.made_on)
    if not job.request.target.accelerator:
        found.accelerator = ""
    return found


def fake_inputs(module: GraphModule, mode: FakeTensorMode) -> list[Any]:
    """The values of the placeholders; also stores those of all nodes where torch looks for them.

    Raises:
        CannotCompile: An input has no metadata.
    """
    env = mode.shape_env
    assert env is not None, "set by fresh_fake_mode"
    inputs = []
    for node in module.graph.nodes:
        # Data-dependent sizes are new symbols, and there is no operator that defines them.
        with env.ignore_fresh_unbacked_symbols():
            value = wire.materialize(node, mode)
        if value is not None:
            node.meta["example_value"] = value
        if node.op == "placeholder":
            if value is None:
                raise CannotCompile(
                    "an input of the graph has no shape; capture the model with torch.export, "
                    "which records the shapes of its inputs"
                )
            inputs.append(value)
    return inputs


def refuse_own_tensors(module: GraphModule) -> None:
    """Check that all tensors of a graph are inputs.

    Raises:
        CannotCompile: Some are not.
    """
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(
            getattr(module, str(node.target), None), torch.Tensor
        ):
            raise CannotCompile("the graph holds tensors that are not inputs; make them inputs")
        if node.op == "call_module":
            raise CannotCompile("the graph calls modules; capture it with torch.compile")

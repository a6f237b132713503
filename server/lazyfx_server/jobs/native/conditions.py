"""What a native job compiles under: the caller's states and settings, and its inputs."""

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
    """Inductor cannot make an artifact of this graph, under these settings, on this machine."""


def compiler_error(compiler: str, error: Exception) -> CannotCompile:
    """What to raise when a compiler raised `error`."""
    text = f"{type(error).__name__}: {error}"
    return CannotCompile(f"{compiler} cannot compile this graph: {text[:_MAX_CHARACTERS]}")


@contextmanager
def apply_request(request: pb.NativeRequest) -> Iterator[None]:
    """The caller's states and settings in place within the block.

    Raises:
        CannotCompile: Something else differs between this process and the caller's.
        LazyfxError: A state or setting is not known.
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
    named = ", ".join(differences[:_MAX_SETTINGS]) or "the caller did not say which"
    if len(differences) > _MAX_SETTINGS:
        named += f" and {len(differences) - _MAX_SETTINGS} more"
    raise CannotCompile(
        "settings of Inductor or AOTAutograd that cannot be sent differ between the caller and "
        f"this server: {named}; give both the same values; docs/training.md lists the "
        f"settings that can be sent"
    )


def host_settings(job: worker.NativeJob) -> dict[str, Any]:
    """Settings of this machine, which change no result."""
    own: dict[str, Any] = {
        "compile_threads": max(1, job.compile_threads),
        "worker_start_method": "fork",
    }
    if job.made_on.vector_isa == machine.likely_vector_isa():
        # It was compiled and loaded once to find out; that need not be done for each job.
        own["cpp.vec_isa_ok"] = True
    return own


def build_target(job: worker.NativeJob) -> pb.NativeTarget:
    """Where the artifact of a job runs."""
    found = pb.NativeTarget()
    found.CopyFrom(job.made_on)
    if not job.request.target.accelerator:
        found.accelerator = ""
    return found


def fake_inputs(module: GraphModule, mode: FakeTensorMode) -> list[Any]:
    """The values of placeholders; those of all nodes are put where torch looks for them.

    Raises:
        CannotCompile: An input has no description.
    """
    env = mode.shape_env
    assert env is not None, "fresh_fake_mode makes one"
    inputs = []
    for node in module.graph.nodes:
        # Sizes that depend on values are new symbols, and no operator is there to show them.
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
    """Check that all tensors of a graph are its inputs.

    Raises:
        CannotCompile: It has others.
    """
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(
            getattr(module, str(node.target), None), torch.Tensor
        ):
            raise CannotCompile("the graph has tensors of its own; make them inputs")
        if node.op == "call_module":
            raise CannotCompile("the graph calls modules; capture it with torch.compile")

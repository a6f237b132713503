"""Compiles a graph with Inductor, as the caller's process would have done, to an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from lazyfx.shared.native import shape_guards
from lazyfx.shared.native.torch_inductor import TensorifyScalarRestartAnalysis, TensorifyState
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.jobs.native.conditions import CannotCompile, compiler_error, refuse_own_tensors
from lazyfx_server.jobs.native.float_inputs import requested_constants
from lazyfx_server.jobs.native.toolchain.kernel_requests import requested_kernels
from lazyfx_server.jobs.native.torch_inductor_codegen import compile_ahead, known_size


def make_bundle(
    module: GraphModule,
    inputs: list[Any],
    mode: FakeTensorMode,
    own: Mapping[str, Any],
) -> pb.NativeBundle:
    """Compile a graph, forward and backward.

    Args:
        module: Consumed.
        inputs: Fake tensors of `mode`.
        mode: With a ShapeEnv.
        own: Settings specific to this machine.

    Raises:
        CannotCompile: Says why, and what the caller can do.

    Returns:
        The artifact; without code but with `fixed_inputs` if floats must become constants first.
    """
    refuse_own_tensors(module)
    env = mode.shape_env
    assert env is not None, "set by fresh_fake_mode"
    # These are dynamo's graphs, in which every number input is symbolic.
    inputs = [known_size(value, env) if type(value) is int else value for value in inputs]
    symbols, floats = shape_guards.input_symbols(inputs), shape_guards.float_symbols(inputs)
    TensorifyState.clear()
    known = len(env.guards)
    with requested_kernels() as kernels:
        try:
            compiled = compile_ahead(module, inputs, mode, own)
            libraries = kernels.collect()
        except TensorifyScalarRestartAnalysis:
            return pb.NativeBundle(fixed_inputs=sorted(requested_constants(floats)))
        except Exception as error:
            raise compiler_error("Inductor", error) from error
    if compiled is None:
        raise CannotCompile("torch cannot serialize Inductor's output for this graph")
    return pb.NativeBundle(
        compiled=compiled,
        kernels=[
            pb.NativeKernel(source=source, library=Path(path).read_bytes())
            for source, path in sorted(libraries.items())
        ],
        guards=shape_guards.guards_of(env, [*symbols, *floats.values()], known),
        float_inputs=floats,
    )

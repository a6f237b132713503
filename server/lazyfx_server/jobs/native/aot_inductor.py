"""Compiles a graph with AOTInductor: a package for serving, built without the weights' values.

During the compile, the weights are fake, and constants are folded only when the package is loaded.
So nothing can depend on a value: reading one is an error.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_flatten, tree_leaves

from lazyfx.shared.native.graph_tensors import own_tensors, replace_tensors
from lazyfx.shared.wire.values.descriptions import fake_tensor
from lazyfx.shared.wire.values.tensors import stand_in_of
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.jobs.native.conditions import CannotCompile, compiler_error
from lazyfx_server.jobs.native.torch_inductor_codegen import AotResult, compile_package
from lazyfx_server.passes.analysis.functionalizing.refused_writes import used_after_write


def make_package(
    module: GraphModule,
    inputs: list[Any],
    mode: FakeTensorMode,
    own: Mapping[str, Any],
) -> pb.AotPackage:
    """Compile a graph for inference.

    Args:
        module: Consumed.
        inputs: Fake tensors of `mode`.
        mode: With a ShapeEnv.
        own: Settings specific to this machine.

    Raises:
        CannotCompile: Says why, and what the caller can do.
    """
    _refuse_symbolic_numbers(inputs)
    _refuse_late_writes(module, inputs)
    shared = _shared_memory(module)
    replace_tensors(module, lambda tensor: _fake(tensor, mode))
    _flatten_outputs(module, len(inputs))
    result = _compile(module, inputs, mode, own)
    if result.writes and shared:
        # In a package each value has its own memory.
        raise CannotCompile(
            f"the graph writes to tensors, and {' and '.join(shared)} share memory: in a package a "
            "write to one would not change the other; give each its own memory"
        )
    archive, values = _without_values(result.archive)
    return pb.AotPackage(
        archive=archive,
        values=values,
        constants=[pb.AotConstant(path=path, size_bytes=size) for path, size in result.constants],
    )


def _compile(
    module: GraphModule, inputs: Sequence[Any], mode: FakeTensorMode, own: Mapping[str, Any]
) -> AotResult:
    env = mode.shape_env
    assert env is not None, "set by fresh_fake_mode"
    known = len(env.guards)
    paths = own_tensors(module).keys()
    try:
        result = compile_package(module, inputs, own)
    except Exception as error:
        raise compiler_error("AOTInductor", error) from error
    conditions = [str(guard.expr) for guard in env.guards[known:] if str(guard.expr) != "True"]
    if conditions:
        # A package does not check sizes, so a graph that is correct for some sizes only is refused.
        raise CannotCompile(
            f"the package would be correct only if {conditions[0]}; give the dimension bounds, or "
            "export the model with that size"
        )
    if unknown := [path for path, _ in result.constants if path not in paths]:
        raise CannotCompile(f"AOTInductor needs a value that is not in the graph ({unknown[0]})")
    return result


def _fake(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    stand_in = stand_in_of(tensor)
    if stand_in is None or tensor.layout is not torch.strided:
        raise CannotCompile("the graph contains a tensor that is not dense")
    row = stand_in.tables.body.tensors[stand_in.attribute.tensor]
    described = fake_tensor(stand_in.tables, row, mode)
    with mode:
        # Values are written one after another, so each has its own storage.
        return torch.empty_strided(
            described.shape, described.stride(), dtype=described.dtype, device=described.device
        )


def _shared_memory(module: GraphModule) -> tuple[str, ...]:
    """The paths of two tensors that are different views of the same memory, if any."""
    seen: dict[int, tuple[str, torch.Tensor]] = {}
    for path, tensor in own_tensors(module).items():
        stand_in = stand_in_of(tensor)
        if stand_in is not None:
            first, other = seen.setdefault(stand_in.attribute.storage, (path, tensor))
            if other is not tensor:
                return first, path
    return ()


def _refuse_symbolic_numbers(inputs: Sequence[Any]) -> None:
    if any(isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) for value in inputs):
        raise CannotCompile("a package takes only tensors; capture the model with torch.export")


def _refuse_late_writes(module: GraphModule, inputs: Sequence[Any]) -> None:
    """A package writes to its inputs last, and cannot check whether they share memory."""

    def may_overlap(one: int, other: int) -> bool:
        tensors = [v for v in (inputs[one], inputs[other]) if isinstance(v, torch.Tensor)]
        empty = any(type(t.numel()) is int and not t.numel() for t in tensors)
        return len(tensors) == 2 and not empty and tensors[0].device == tensors[1].device

    found = used_after_write(module, may_overlap)
    if found is not None:
        raise CannotCompile(
            f"the graph writes to input {found[0]} and then uses input {found[1]}: if a caller "
            "passed both in one memory, a package would compute something else; make the written "
            "one a buffer of the model, or use save_pickle"
        )


def _flatten_outputs(module: GraphModule, inputs: int) -> None:
    """Make the graph return its tensors in a list, and take its inputs positionally.

    Pytrees stay with the caller; their types need not exist here.
    """
    output = next(iter(reversed(module.graph.nodes)))
    leaves = [leaf for leaf in tree_leaves(output.args[0]) if isinstance(leaf, Node)]
    output.args = (tuple(leaves),)
    module.recompile()
    module._in_spec = tree_flatten(((0,) * inputs, {}))[1]  # noqa: SLF001 - where torch looks for it
    module._out_spec = tree_flatten([0] * len(leaves))[1]  # noqa: SLF001


def _without_values(archive: bytes) -> tuple[bytes, str]:
    """The archive without the file of values, and the name of that file, "" if there is none."""
    kept = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as given, zipfile.ZipFile(kept, "w") as left:
        values = next((name for name in given.namelist() if name.endswith(".blob")), "")
        for name in given.namelist():
            if name != values:
                left.writestr(name, given.read(name))
    return kept.getvalue(), values

"""Exports a graph as an ExportedProgram, with the parameters of its module."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.graph import _PyTreeCodeGen
from torch.utils._pytree import tree_unflatten

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared import wire
from lazyfx.shared.formats.export_checks import check_state, enter_autocast_when_run
from lazyfx.shared.formats.late_operators import refuse_late_operators
from lazyfx.shared.forward_levels import in_fresh_thread


def export_module(module: GraphModule) -> bytes:
    """Export a graph with the input metadata that it carries; no operator runs.

    Args:
        module: A decoded module with current code. A calling convention of torch.export is kept,
            and symbolic dimensions stay symbolic, within their bounds.

    Returns:
        The output of torch.export.save; `torch.export.load(...).module()` is called like `module`.

    Raises:
        UnsupportedGraphError: An input has no metadata, or torch.export cannot express the graph;
            says why.
    """
    return in_fresh_thread(lambda: _exported(module))


def _exported(module: GraphModule) -> bytes:
    refuse_late_operators(module)
    enter_autocast_when_run(module)
    described = FakeTensorMode(shape_env=ShapeEnv())
    # Inputs with example sizes: torch.export creates its own symbols.
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    examples: list[Any] = []
    dynamic: list[Any] = []
    for node in module.graph.find_nodes(op="placeholder"):
        value = wire.materialize(node, described)
        if value is None:
            raise UnsupportedGraphError(
                "an input without a shape",
                node=node.name,
                remedy="capture the model with torch.export, which records shapes",
            )
        try:
            examples.append(_example(value, mode))
            dynamic.append(_dimensions(value))
        except Exception as error:  # torch's checks of sizes raise errors of every kind
            raise UnsupportedGraphError(
                f"an input with sizes that torch.export does not support: {error}", node=node.name
            ) from error
    args, kwargs = _arranged(module, examples)
    shapes, named = _arranged(module, dynamic)
    try:
        with _unwritten_constants(module):
            program = torch.export.export(
                module, args, kwargs, dynamic_shapes=_by_name(module, shapes, named), strict=False
            )
        check_state(program, module)
        # They are fake, and useless to anyone who loads the program.
        program._example_inputs = None  # noqa: SLF001 - its public setter checks the new ones
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        # Verify that torch can load the bytes it wrote on the line above; these are never received
        # bytes.
        torch.export.load(buffer)
    except UnsupportedGraphError:
        raise
    except Exception as error:  # torch.export raises errors of every kind
        reason = str(error).strip().partition("\n")[0]
        raise UnsupportedGraphError(
            f"torch.export cannot express the graph: {type(error).__name__}: {reason}",
            remedy="request code, a pickle or the graph instead",
        ) from error
    return buffer.getvalue()


@contextmanager
def _unwritten_constants(module: GraphModule) -> Iterator[None]:
    """Undoes what torch.export writes to tensors that are neither parameters nor buffers.

    While it traces, it performs the graph's writes to these.
    """
    constants = [
        value
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, torch.Tensor) and value.layout is torch.strided
    ]
    before = [(value, value.detach().clone(), value._version) for value in constants]  # noqa: SLF001
    try:
        yield
    finally:
        for value, old, version in before:
            if value._version != version:  # noqa: SLF001
                value.data.copy_(old)


def _arranged(module: GraphModule, values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The values of the graph's inputs, arranged for its forward."""
    codegen = module.graph._codegen  # noqa: SLF001 - torch has no public reader
    if isinstance(codegen, _PyTreeCodeGen):
        args, kwargs = tree_unflatten(values, codegen.pytree_info.in_spec)
        return tuple(args), dict(kwargs)
    return tuple(values), {}


def _by_name(
    module: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...] | dict[str, Any]:
    if not kwargs:
        return args
    codegen = module.graph._codegen  # noqa: SLF001 - torch has no public reader
    assert isinstance(codegen, _PyTreeCodeGen), "others have no keywords"
    names = [name for name in codegen.pytree_info.orig_args if name != "self"]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _example(value: Any, mode: FakeTensorMode) -> Any:
    if isinstance(value, torch.Tensor):
        sizes, strides = _numbers(value.shape), _numbers(value.stride())
        with mode:
            return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)
    return _number(value)


def _dimensions(value: Any) -> Any:
    """The dynamic dimensions of a tensor by index, or a dynamic number."""
    if isinstance(value, torch.Tensor):
        sizes: list[Any] = list(value.shape)  # to a type checker, SymInt is not an int
        found = {i: _bounds(s) for i, s in enumerate(sizes) if isinstance(s, torch.SymInt)}
        return found or None
    return _bounds(value) if isinstance(value, torch.SymInt) else None


def _bounds(size: torch.SymInt) -> Any:
    bounds = size.node.shape_env.bound_sympy(size.node.expr)
    lower = int(bounds.lower) if bounds.lower.is_Integer else None
    upper = int(bounds.upper) if bounds.upper.is_Integer else None
    return Dim.AUTO(min=lower, max=upper)


def _numbers(sizes: Any) -> list[int]:
    return [_number(size) for size in sizes]


def _number(value: Any) -> Any:
    return value.node.hint if isinstance(value, (torch.SymInt, torch.SymFloat)) else value

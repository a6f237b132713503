"""Ways to capture one call as a graph."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from conformance.cases import Call, Called


@dataclass(frozen=True)
class Captured:
    """A graph of a call.

    Attributes:
        module: The graph.
        inputs: What it is called with: tensors of the call and, from dynamo, parameters and sizes.
    """

    module: GraphModule
    inputs: list[Any]


def captured(way: str, call: Call) -> Captured | None:
    """A graph of a call, or None if torch itself cannot capture it."""
    function, given = call.function, copy.deepcopy(call.tensors)
    if isinstance(function, nn.Module):
        function = copy.deepcopy(function)
    torch.manual_seed(0)
    try:
        # torch prints long messages about failed exports.
        said = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            return WAYS[way](function, given)
    except Exception:  # noqa: BLE001 - captures raise errors of every kind
        return None


def _make_fx(function: Callable[..., Any], tensors: list[Any]) -> Captured:
    inputs = copy.deepcopy(tensors)
    return Captured(make_fx(function)(*tensors), inputs)


def _export(
    function: Callable[..., Any], tensors: list[Any], dynamic_shapes: Any = None
) -> Captured:
    class Model(nn.Module):
        def forward(self, *inputs: Any) -> Any:
            return function(*inputs)

    model = function if isinstance(function, nn.Module) else Model()
    program = torch.export.export(
        model, tuple(tensors), dynamic_shapes=dynamic_shapes, strict=False
    )
    module: Any = program.module(check_guards=False)
    return Captured(module, tensors)


def _export_dynamic(function: Callable[..., Any], tensors: list[Any]) -> Captured:
    """Export with as many symbolic sizes as torch supports."""
    sizes = tuple(dict.fromkeys(range(tensor.dim()), Dim.AUTO) for tensor in tensors)
    return _export(function, tensors, (sizes,))


def _dynamo(
    function: Callable[..., Any], tensors: list[Any], *, dynamic: bool = False
) -> Captured | None:
    found: list[Captured] = []

    def backend(module: GraphModule, _inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            found.append(Captured(module, [_copy(each) for each in args]))
            return module.forward(*args)

        return run

    torch._dynamo.reset()
    torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)(*tensors)
    return found[0] if found else None


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _leaf(function: Callable[..., Any], tensors: list[Any]) -> Captured | None:
    """A module of torch as `torch.fx.symbolic_trace` leaves it: one node that calls it."""
    if not isinstance(function, Called):
        return None
    graph = Graph()
    places = [graph.placeholder(f"x{number}") for number in range(len(tensors))]
    function.calling(lambda *a, **k: graph.output(graph.call_module("called", a, k)), *places)
    return Captured(GraphModule(function, graph), tensors)


WAYS: Mapping[str, Callable[..., Captured | None]] = MappingProxyType(
    {
        "make_fx": _make_fx,
        "export": _export,
        "export_dynamic": _export_dynamic,
        "dynamo": _dynamo,
        "dynamo_dynamic": functools.partial(_dynamo, dynamic=True),
        "leaf": _leaf,
    }
)

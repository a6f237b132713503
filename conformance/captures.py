"""Ways to capture one call as a graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from conformance.cases import Call, Called


def captured(way: str, call: Call) -> GraphModule | None:
    """A graph of a call, or None where torch itself cannot capture one."""
    function, given = call.function, copy.deepcopy(call.tensors)
    if isinstance(function, nn.Module):
        function = copy.deepcopy(function)
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return WAYS[way](function, given)
    except Exception:  # noqa: BLE001 - captures raise errors of every kind
        return None


def _make_fx(function: Callable[..., Any], tensors: list[Any]) -> GraphModule:
    return make_fx(function)(*tensors)


def _export(
    function: Callable[..., Any], tensors: list[Any], dynamic_shapes: Any = None
) -> GraphModule:
    class Model(nn.Module):
        def forward(self, *inputs: Any) -> Any:
            return function(*inputs)

    model = function if isinstance(function, nn.Module) else Model()
    program = torch.export.export(
        model, tuple(tensors), dynamic_shapes=dynamic_shapes, strict=False
    )
    return program.module(check_guards=False)  # type: ignore[return-value]


def _export_dynamic(function: Callable[..., Any], tensors: list[Any]) -> GraphModule:
    """With every size symbolic that torch can keep so."""
    sizes = tuple(dict.fromkeys(range(tensor.dim()), Dim.AUTO) for tensor in tensors)
    return _export(function, tensors, (sizes,))


def _dynamo(function: Callable[..., Any], tensors: list[Any]) -> GraphModule | None:
    found: list[GraphModule] = []

    def backend(module: GraphModule, _inputs: Any) -> Callable[..., Any]:
        found.append(module)
        return module.forward

    torch._dynamo.reset()
    torch.compile(function, backend=backend, fullgraph=True, dynamic=False)(*tensors)
    return found[0] if found else None


def _leaf(function: Callable[..., Any], tensors: list[Any]) -> GraphModule | None:
    """A module of torch as `torch.fx.symbolic_trace` leaves it: one node that calls it."""
    if not isinstance(function, Called):
        return None
    graph = Graph()
    places = [graph.placeholder(f"x{number}") for number in range(len(tensors))]
    function.calling(lambda *a, **k: graph.output(graph.call_module("called", a, k)), *places)
    return GraphModule(function, graph)


WAYS: Mapping[str, Callable[..., GraphModule | None]] = MappingProxyType(
    {
        "make_fx": _make_fx,
        "export": _export,
        "dynamic": _export_dynamic,
        "dynamo": _dynamo,
        "leaf": _leaf,
    }
)

"""Graphs of torch's own table of operators, captured in three ways."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

CAPTURES = ("make_fx", "export", "dynamo")


def samples(start: int = 0, step: int = 1) -> Iterator[tuple[str, Callable[..., Any], list[Any]]]:
    """Operators with their first inputs: a name, a function of tensors, and the tensors."""
    from torch.testing._internal.common_methods_invocations import op_db

    for op in sorted(op_db, key=lambda op: op.formatted_name)[start::step]:
        dtypes = op.supported_dtypes("cpu")
        dtype = next((d for d in (torch.float32, torch.int64, torch.bool) if d in dtypes), None)
        if dtype is None:
            continue
        torch.manual_seed(0)
        try:
            sample = next(iter(op.sample_inputs("cpu", dtype, requires_grad=False)), None)
        except Exception:  # noqa: BLE001 - some need what is not here (SciPy, CUDA)
            sample = None
        if sample is not None:
            function, tensors = _of_tensors(op, sample)
            if all(tensor.layout is torch.strided for tensor in tensors):
                yield op.formatted_name, function, tensors


def captured(way: str, function: Callable[..., Any], tensors: list[Any]) -> GraphModule | None:
    """A graph, or None where torch itself cannot capture one."""
    given = copy.deepcopy(tensors)
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _WAYS[way](function, given)
    except Exception:  # noqa: BLE001 - captures raise errors of every kind
        return None


def _of_tensors(op: Any, sample: Any) -> tuple[Callable[..., Any], list[Any]]:
    leaves, spec = pytree.tree_flatten(((sample.input, *sample.args), sample.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def function(*tensors: torch.Tensor) -> Any:
        given = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        args, kwargs = pytree.tree_unflatten(given, spec)
        return op(*args, **kwargs)

    return function, [leaves[place].detach() for place in places]


def _export(function: Callable[..., Any], tensors: list[Any]) -> GraphModule:
    class Model(nn.Module):
        def forward(self, *inputs: Any) -> Any:
            return function(*inputs)

    program = torch.export.export(Model(), tuple(tensors), strict=False)
    return program.module(check_guards=False)  # type: ignore[return-value]


def _dynamo(function: Callable[..., Any], tensors: list[Any]) -> GraphModule | None:
    found: list[GraphModule] = []

    def backend(module: GraphModule, _inputs: Any) -> Callable[..., Any]:
        found.append(module)
        return module.forward

    torch._dynamo.reset()
    torch.compile(function, backend=backend, fullgraph=True, dynamic=False)(*tensors)
    return found[0] if found else None


_WAYS: dict[str, Callable[..., GraphModule | None]] = {
    "make_fx": lambda function, tensors: make_fx(function)(*tensors),
    "export": _export,
    "dynamo": _dynamo,
}

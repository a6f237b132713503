"""What a graph calls, as a pickle finds it in a process that has torch alone."""

# ruff: noqa: SLF001 - operators have no public class

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, Final

import torch

from lazyfx.errors import UnsupportedGraphError
from lazyfx.pickling import torch_names
from lazyfx.pickling.made import Made, after, home, named, resolve
from lazyfx.v1 import graph_pb2 as pb
from lazyfx.wire import numpy_twins, target_lists, targets, twins
from lazyfx.wire.schemas import operator_of

REGISTERED_BY: Final = {
    **target_lists.LATE_NAMESPACES,
    "_c10d_functional": "torch.distributed._functional_collectives",
    "_dtensor": "torch.distributed.tensor._collective_utils",
    "c10d_functional": "torch.distributed._functional_collectives",
    "export": "torch.export.custom_ops",
    "flex_lib": "torch._higher_order_ops.flex_attention",
    "fsdp": "torch.distributed.fsdp._fully_shard._fsdp_collectives",
    "onnx": "torch.onnx.ops",
    "prims": "torch._inductor.inductor_prims",
    "streams": "torch._dynamo.variables.streams",
}
"""Modules of torch that register operators of a namespace when they are imported, and only then."""


class Callables:
    """Writes callables, each once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, Made]] = {}

    def form(self, target: Any) -> Made:
        """What finds `target` where the pickle is loaded.

        Raises:
            UnsupportedGraphError: It has no place that could be told.
        """
        known = self._known.get(id(target))
        if known is None:
            known = self._known[id(target)] = (target, _form(target))
        return known[1]


def _form(target: Any) -> Made:
    if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return _operator(target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        place = home(target)
        if place is not None:
            return named(place)
    elif target is twins.lower_version_count_by_1:
        return _of_source(twins.lower_version_count_by_1)
    elif (wrapped := numpy_twins.wrapper_name(target)) is not None:
        return _numpy_wrapper(target, wrapped)
    else:
        kind, name = targets.name_of(target) or (0, "")
        if kind == pb.TARGET_KIND_FUNCTION and _is_at(name, target):
            return named(name)
    raise UnsupportedGraphError(
        f"the callable {target!r:.200} cannot be imported where only torch is installed",
        remedy="save the graph instead (lazyfx.save_graph), or make it a custom operator",
    )


def _is_at(name: str, target: object) -> bool:
    try:
        return bool(resolve(name) == target)
    except LookupError:
        return False


def _operator(target: torch._ops.OpOverload | torch._ops.OpOverloadPacket) -> Made:
    operator = operator_of(target)
    assert operator is not None
    registry: Any = named("torch.ops")
    module = REGISTERED_BY.get(operator.namespace)
    if module is not None and importlib.util.find_spec(module):
        registry = after(registry, named(module))
    found = Made(getattr, (Made(getattr, (registry, operator.namespace)), operator.name))
    return Made(getattr, (found, operator.overload)) if operator.overload else found


def _numpy_wrapper(target: Any, name: str) -> Made:
    """A wrapper of dynamo's around a NumPy function of torch's, made again."""
    cls = named(f"torch._dynamo.utils.{type(target).__name__}")
    own = name.rpartition(".")[2]
    if type(target).__name__ == "numpy_method_wrapper":
        return Made(cls, (own,))
    if type(target).__name__ == "numpy_operator_wrapper":
        return Made(cls, (named(f"operator.{own}"),))
    return Made(cls, (named(name),))


def _of_source(function: Callable[..., Any]) -> Made:
    """A function of ours that stands for one that torch defines inside another."""
    # Not of a module of torch: torch.fx would write it as one of its functions.
    names = {"torch": named("torch"), "__name__": "saved_graph"}
    return Made(torch_names.function_of, (function.__name__, inspect.getsource(function), names))

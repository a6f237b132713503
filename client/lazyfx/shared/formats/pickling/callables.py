"""Pickles the call targets of a graph so that a process with torch alone can find them."""

# ruff: noqa: SLF001 - operators have no public class

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, Final

import torch

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.formats.pickling import torch_rebuild
from lazyfx.shared.formats.pickling.deferred_calls import (
    DeferredCall,
    after_calls,
    by_dotted_name,
    dotted_name_of,
    resolve,
)
from lazyfx.shared.wire.targets import (
    allow_table,
    canonical_callables,
    numpy_wrappers,
    target_lists,
)
from lazyfx.shared.wire.targets.operator_schemas import Operator, operator_of
from lazyfx.v1 import graph_pb2 as pb

REGISTERING_MODULES: Final = {
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
"""Modules of torch that register the operators of a namespace only when they are imported."""


class CallableReducer:
    """Pickles callables, each once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, DeferredCall]] = {}

    def reduce(self, target: Any) -> DeferredCall:
        """The call that finds `target` when the pickle is loaded.

        Raises:
            UnsupportedGraphError: It has no importable name.
        """
        known = self._known.get(id(target))
        if known is None:
            known = self._known[id(target)] = (target, _reduce(target))
        return known[1]


def _reduce(target: Any) -> DeferredCall:
    if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return _operator(target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        place = dotted_name_of(target)
        if place is not None:
            return by_dotted_name(place)
    elif target is canonical_callables.lower_version_count_by_1:
        return _of_source(canonical_callables.lower_version_count_by_1)
    elif (wrapped := numpy_wrappers.wrapper_name(target)) is not None:
        return _numpy_wrapper(target, wrapped)
    else:
        kind, name = allow_table.name_of(target) or (0, "")
        if kind == pb.TARGET_KIND_FUNCTION and _is_at(name, target):
            return by_dotted_name(name)
    raise UnsupportedGraphError(
        f"the callable {target!r:.200} cannot be imported where only torch is installed",
        remedy="save the graph instead (lazyfx.save_graph), or turn it into a custom operator",
    )


def _is_at(name: str, target: object) -> bool:
    try:
        return bool(resolve(name) == target)
    except LookupError:
        return False


def _operator(target: torch._ops.OpOverload | torch._ops.OpOverloadPacket) -> DeferredCall:
    operator = operator_of(target)
    assert operator is not None
    registry: Any = by_dotted_name("torch.ops")
    module = registering_module(operator)
    if module is not None:
        registry = after_calls(registry, by_dotted_name(module))
    found = DeferredCall(
        getattr, (DeferredCall(getattr, (registry, operator.namespace)), operator.name)
    )
    return DeferredCall(getattr, (found, operator.overload)) if operator.overload else found


def registering_module(operator: Operator) -> str | None:
    """The module that must be imported for an operator to exist, if it is known and there."""
    module = REGISTERING_MODULES.get(operator.namespace)
    if module is None:
        module = torch_rebuild.defining_module_of(f"{operator.namespace}::{operator.name}")
    try:
        return module if module and importlib.util.find_spec(module) else None
    except (ImportError, ValueError):  # an operator that a program defines in __main__
        return None


def _numpy_wrapper(target: Any, name: str) -> DeferredCall:
    """Recreate a wrapper of dynamo around one of torch's NumPy functions."""
    cls = by_dotted_name(f"torch._dynamo.utils.{type(target).__name__}")
    own = name.rpartition(".")[2]
    if type(target).__name__ == "numpy_method_wrapper":
        return DeferredCall(cls, (own,))
    if type(target).__name__ == "numpy_operator_wrapper":
        return DeferredCall(cls, (by_dotted_name(f"operator.{own}"),))
    return DeferredCall(cls, (by_dotted_name(name),))


def _of_source(function: Callable[..., Any]) -> DeferredCall:
    """Recreate our equivalent of a function that torch defines inside another one."""
    # Not in a module of torch: torch.fx would write it as one of that module's functions.
    names = {"torch": by_dotted_name("torch"), "__name__": "saved_graph"}
    return DeferredCall(
        torch_rebuild.function_of, (function.__name__, inspect.getsource(function), names)
    )

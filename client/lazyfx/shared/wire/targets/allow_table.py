"""The allow-table: the callables that a graph may call, and their names.

A lookup is an exact match in tables that are built once from torch's own registries and the lists
of `target_lists`; a name from the wire is never resolved as a path.
"""

# ruff: noqa: SLF001 - torch's registries of operators are private, and read here only

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import math
import operator
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch._higher_order_ops  # registers the higher-order operators
import torch.overrides

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.targets import (
    added_targets,
    autograd_functions,
    canonical_callables,
    operator_schemas,
)
from lazyfx.shared.wire.targets import target_lists as lists
from lazyfx.v1 import graph_pb2 as pb

Key = tuple[int, str]


@functools.lru_cache(maxsize=1)
def functions() -> dict[str, Callable[..., Any]]:
    """Python functions by wire name, e.g. "torch.nn.functional.relu", "operator.add"."""
    table: dict[str, Callable[..., Any]] = {}
    for module, denied in ((operator, lists.OPERATOR_DENIED), (math, lists.MATH_DENIED)):
        for name in sorted(vars(module)):
            value = getattr(module, name)
            if not name.startswith("_") and name not in denied and callable(value):
                table[f"{module.__name__}.{name}"] = value
    table.update({f"builtins.{name}": getattr(builtins, name) for name in lists.BUILTIN_NAMES})
    table.update(_overridable_functions())
    for name in lists.TORCH_NAMES:
        if hasattr(torch, name):
            table[f"torch.{name}"] = getattr(torch, name)
    for dotted in lists.DEEP_NAMES:
        value = _import(dotted)
        if value is not None:
            table.setdefault(dotted, value)
    for name in sorted(methods()):
        value = getattr(torch.Tensor, name, None)
        if value is not None and name not in lists.OTHER_METHODS:
            table.setdefault(f"torch.Tensor.{name}", value)
    table.update(canonical_callables.table())
    for name in lists.DENIED_FUNCTIONS:
        table.pop(name, None)
    table.update(added_targets.FUNCTIONS)
    return table


def _overridable_functions() -> dict[str, Callable[..., Any]]:
    """Functions of torch's modules that torch.overrides lists as overridable."""
    listed = {
        id(function)
        for group in torch.overrides.get_overridable_functions().values()
        for function in group
    }
    table = {}
    for module_name in lists.FUNCTION_MODULES:
        module = _import(module_name)
        whole = module_name in lists.WHOLE_MODULES
        public = module_name in lists.PUBLIC_MODULES
        for name in sorted(dir(module)) if module is not None else ():
            value = getattr(module, name, None)
            if name.startswith("__") or not callable(value) or isinstance(value, type):
                continue
            in_place = name.endswith("_") and not name.startswith("_")
            allowed = (
                (whole and name not in lists.WHOLE_MODULES_DENIED)
                or (public and _is_public_function(name, value))
                or _binds_operator(name, value)
            )
            if allowed or in_place or id(value) in listed:
                table[f"{module_name}.{name}"] = value
    return table


def _is_public_function(name: str, value: object) -> bool:
    return (
        isinstance(value, types.FunctionType | types.BuiltinFunctionType)
        and not name.startswith("_")
        and name not in lists.PUBLIC_MODULES_DENIED
    )


def _binds_operator(name: str, value: object) -> bool:
    """Whether a builtin of torch only calls the operator of the same name, which is allowed."""
    bound = getattr(torch._C._VariableFunctions, name, None)
    return bound is value and value is not None and _is_operator(f"aten::{name}")


def _is_operator(name: str) -> bool:
    try:
        return _registered_packet(name) is not None
    except LookupError:
        return False


def _import(dotted: str) -> Any:
    """The object of a dotted name of our own lists, or None if this torch lacks it."""
    parts = dotted.split(".")
    for split in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:split]))
        except ImportError:
            continue
        for part in parts[split:]:
            value = getattr(value, part, None)
        return value
    return None


@functools.lru_cache(maxsize=1)
def _function_names() -> dict[int, str]:
    """Wire names by identity of the function; the first listed name of an object wins."""
    names: dict[int, str] = {}
    for name, function in functions().items():
        names.setdefault(id(function), name)
    return names


@functools.lru_cache(maxsize=1)
def methods() -> frozenset[str]:
    """Names that a CALL_METHOD node may call."""
    public = {
        name
        for name in dir(torch.Tensor)
        if not name.startswith("_")
        and name not in lists.METHODS_DENIED
        and callable(getattr(torch.Tensor, name, None))
    }
    dunders = {name for name in lists.METHOD_DUNDERS if hasattr(torch.Tensor, name)}
    return frozenset(public | dunders | lists.OTHER_METHODS | added_targets.METHODS)


def _find_operator(name: str) -> torch._ops.OpOverload | None:
    """The overload with this exact registered name, e.g. "aten::add.Tensor"."""
    try:
        return _registered_overload(name)
    except LookupError:
        return None


@functools.lru_cache(maxsize=4096)
def _registered_overload(name: str) -> torch._ops.OpOverload:
    """The overload of a name; a LookupError is not cached: it may be registered later."""
    packet, _, overload = name.rpartition(".")
    found = _registered_packet(packet)
    value = getattr(found, overload) if overload in found.overloads() else None
    if isinstance(value, torch._ops.OpOverload) and is_dispatched(packet, overload):
        return value
    raise LookupError(name)


def _find_packet(name: str) -> torch._ops.OpOverloadPacket | None:
    """The packet with this exact registered name, e.g. "aten::add"."""
    if name in lists.DENIED_PACKETS:
        return None
    try:
        return _registered_packet(name)
    except LookupError:
        return None


@functools.lru_cache(maxsize=4096)
def _registered_packet(name: str) -> torch._ops.OpOverloadPacket:
    """The packet of a name; a LookupError is not cached: it may be registered later."""
    namespace, separator, base = name.partition("::")
    if not separator or name in lists.DENIED_OPERATORS or namespace in lists.DENIED_NAMESPACES:
        raise LookupError(name)
    # A registered schema proves that this is an operator and not some other attribute.
    if not torch._C._jit_get_schemas_for_operator(name):
        _register_late(namespace)
        if not torch._C._jit_get_schemas_for_operator(name):
            raise LookupError(name)
    value = getattr(getattr(torch.ops, namespace), base, None)
    if isinstance(value, torch._ops.OpOverloadPacket) and any(
        is_dispatched(name, overload) for overload in value.overloads()
    ):
        return value
    raise LookupError(name)


def register_late() -> None:
    """Make torch register all its operators, including those that it registers on first use."""
    for namespace in lists.LATE_NAMESPACES:
        _register_late(namespace)


def _register_late(namespace: str) -> None:
    """Import the module that registers the operators of a lazily registered namespace of torch."""
    module = lists.LATE_NAMESPACES.get(namespace)
    if module is not None:
        with contextlib.suppress(ImportError):  # this torch lacks it
            importlib.import_module(module)


def is_dispatched(packet: str, overload: str) -> bool:
    """Whether the dispatcher has an operator, not only TorchScript's interpreter.

    Operators that only the interpreter has are never captured, and do not validate their operands:
    arithmetic traps, strings and lists grow without bound, and instructions (`prim`) read a program
    that does not exist.
    """
    if packet.partition("::")[0] not in ("aten", "prim"):
        return True
    try:
        torch._C._dispatch_find_schema_or_throw(packet, "" if overload == "default" else overload)
    except RuntimeError:
        return False
    return True


def find(kind: int, name: str) -> Callable[..., Any] | str:
    """The callable (for METHOD: the method's name) that a wire target names.

    Raises:
        DecodeError: The allow-table has no such entry.
    """
    found: Callable[..., Any] | str | None = None
    if kind == pb.TARGET_KIND_FUNCTION:
        found = functions().get(name)
    elif kind == pb.TARGET_KIND_OPERATOR:
        found = _find_operator(name)
    elif kind == pb.TARGET_KIND_METHOD:
        found = name if name in methods() else None
    elif kind == pb.TARGET_KIND_OPERATOR_PACKET:
        found = _find_packet(name)
    elif kind == pb.TARGET_KIND_HIGHER_ORDER_OPERATOR and name not in lists.DENIED_HIGHER_ORDER:
        functions()  # which imports dynamo, which registers some of them
        found = torch._ops._higher_order_ops.get(name)
    if found is None:
        label = {number: word for word, number in pb.TargetKind.items()}.get(kind, str(kind))  # type: ignore[call-overload]
        raise DecodeError(
            f"{label} {name[:200]!r} is not in the table of allowed targets"
            + (
                "; register the custom operator where the graph is compiled (lazyfx serve "
                "--operator-modules)"
                if kind in (pb.TARGET_KIND_OPERATOR, pb.TARGET_KIND_OPERATOR_PACKET)
                and not name.startswith("aten::")
                else ""
            )
        )
    return found


def name_of(target: object) -> Key | None:
    """Kind and wire name of a callable, or None when a graph may not name it."""
    if isinstance(target, torch._ops.OpOverload):
        name = operator_schemas.facts(target).name
        return (pb.TARGET_KIND_OPERATOR, name) if _find_operator(name) is target else None
    if isinstance(target, torch._ops.OpOverloadPacket):
        name = target._qualified_op_name
        return (pb.TARGET_KIND_OPERATOR_PACKET, name) if _find_packet(name) is target else None
    if isinstance(target, torch._ops.HigherOrderOperator):
        name = target.name()
        if name in lists.DENIED_HIGHER_ORDER or torch._ops._higher_order_ops.get(name) is None:
            return None
        return (pb.TARGET_KIND_HIGHER_ORDER_OPERATOR, name)
    function = _function_names().get(id(target))
    if function is None and isinstance(target, types.BuiltinMethodType):
        # For some static methods, torch returns a new bound builtin at each access.
        function = _bound_builtin_name(target)
    if function is None:
        function = canonical_callables.canonical_name(target)
    return None if function is None else (pb.TARGET_KIND_FUNCTION, function)


def _bound_builtin_name(target: types.BuiltinMethodType) -> str | None:
    for module in lists.FUNCTION_MODULES:
        name = f"{module}.{target.__name__}"
        if functions().get(name) == target:
            return name
    return None


@functools.lru_cache(maxsize=1)
def _literal_rules() -> dict[int, tuple[int, int, frozenset[str]]]:
    """Callables that look up a name: argument count, position of the name, allowed names."""
    table = functions()
    return {id(table[name]): rule for name, rule in lists.LOOKUPS.items() if name in table}


def clear_caches() -> None:
    """Rebuild the tables on next use."""
    for table in (functions, _function_names, methods, _literal_rules):
        table.cache_clear()


def is_lookup(target: object) -> bool:
    """Whether a callable looks up a name, so that its arguments must be known."""
    return id(target) in _literal_rules() or autograd_functions.is_flat_apply(target)


def forbidden_lookup(target: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Why these arguments make a callable look up a forbidden name, if so."""
    rule = _literal_rules().get(id(target))
    if rule is None:
        return autograd_functions.forbidden_name(target, args)
    count, place, allowed = rule
    if kwargs or len(args) != count or type(args[place]) is not str:
        return "takes positional arguments and a literal name"
    return None if args[place] in allowed else f"may not look up {args[place][:100]!r}"


def sorts_dictionaries(target: pb.Target) -> bool:
    """Whether a function ignores the order of a dictionary argument.

    Operators and functions of torch look entries up by key. Anything that gets the dictionary
    itself (Python's own functions, a called or nested graph, the caller) can see their order.
    """
    if target.kind == pb.TARGET_KIND_FUNCTION:
        return target.name.startswith("torch.")
    return target.kind in (pb.TARGET_KIND_OPERATOR, pb.TARGET_KIND_OPERATOR_PACKET)

"""Passes that give calls a uniform style: keyword arguments."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.operator_schemas import create_type_hint, normalize_function

from lazyfx.shared.wire.values.descriptions import describe
from lazyfx_server.passes.analysis import operator_facts
from lazyfx_server.passes.analysis.walk import graph_modules
from lazyfx_server.passes.base import Pass, PassContext, PassResult

# Their schemas are TorchScript's own; Python does not accept the argument names.
_SCRIPT_NAMES = (torch.tensor, torch.as_tensor)


@dataclass(frozen=True)
class NormalizeArguments(Pass):
    """Passes every argument of a function call by keyword, including defaults.

    Equivalent calls are then written identically. Handles aten operators and torch's own functions;
    calls with an ambiguous signature, methods, modules and Python's operators are left unchanged.
    """

    name: ClassVar[str] = "normalize_arguments"
    version: ClassVar[int] = 3

    fill_defaults: bool = field(
        default=True, metadata={"help": "Write out arguments that have their default value too."}
    )

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Rewrites the arguments in place, including in nested GraphModules."""
        changed = sum(self._normalize(part) for part in graph_modules(module))
        return PassResult(module, changed > 0, f"{changed} calls normalized" if changed else "")

    def _normalize(self, module: GraphModule) -> int:
        changed = 0
        for node in module.graph.nodes:
            if node.op != "call_function":
                continue
            named = self._named(node)
            if named is None or (not node.args and _same(named, node.kwargs)):
                continue
            node.args = ()
            node.kwargs = named
            changed += 1
        if changed:
            module.recompile()
        return changed

    def _named(self, node: Node) -> dict[str, Any] | None:
        target: Any = node.target
        if target in _SCRIPT_NAMES:
            return None
        if isinstance(target, OpOverload):
            named = _of_operator(node, target)
        elif type(target).__hash__ is not None and target in operator_facts.torch_functions():
            named = _of_function(node)
        else:
            return None
        if named is None or any(keyword.iskeyword(name) for name in named):
            return None
        if self.fill_defaults:
            return named
        given = set(list(named)[: len(node.args)]) | set(node.kwargs)
        return {name: value for name, value in named.items() if name in given}


def _of_operator(node: Node, op: OpOverload[..., Any]) -> dict[str, Any] | None:
    parameters = op._schema.arguments  # noqa: SLF001 - torch's own way to a schema
    by_place = [p for p in parameters if not p.kwarg_only]
    if len(node.args) > len(by_place):
        return None
    given = {p.name: value for p, value in zip(by_place, node.args, strict=False)} | node.kwargs
    named: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.name in given:
            named[parameter.name] = given.pop(parameter.name)
        elif parameter.has_default_value():
            named[parameter.name] = parameter.default_value
        else:
            return None
    return None if given else named


def _of_function(node: Node) -> dict[str, Any] | None:
    target: Any = node.target
    if isinstance(node.kwargs.get("out"), list | tuple):
        return None  # torch's search takes overloads with one result for those with several
    types = [_type_of(value) for value in node.args]
    keyword_types = {name: _type_of(value) for name, value in node.kwargs.items()}
    known = None not in types and None not in keyword_types.values()
    try:
        found = normalize_function(
            target,
            node.args,
            dict(node.kwargs),
            tuple(create_type_hint(t) for t in types) if known else None,  # type: ignore[arg-type]
            keyword_types if known else None,
            normalize_to_only_use_kwargs=True,
        )
    except (RuntimeError, TypeError, ValueError):  # ambiguous, or no such signature
        return None
    if found is None:
        return None
    # The overload was selected by its schema; absent arguments stay absent.
    given = set(list(found.kwargs)[: len(node.args)]) | set(node.kwargs)
    if not set(node.kwargs) <= set(found.kwargs):
        return None
    written_in_python = hasattr(target, "__code__")
    if not written_in_python and _type_of(found.kwargs.get("input")) not in (None, torch.Tensor):
        return None  # pow(2, x): torch calls the operand "input" only if it is a tensor
    return {
        name: value
        for name, value in found.kwargs.items()
        if name in given or written_in_python or value is not None
    }


def _type_of(value: Any) -> Any:
    """The type that an argument will have when the graph runs; None if unknown."""
    if isinstance(value, list | tuple):
        inner = [_type_of(item) for item in value]
        return None if None in inner else type(value)(inner)
    if not isinstance(value, Node):
        return type(value)
    known = value.meta.get("val", value.meta.get("example_value"))
    row = describe(value) if known is None else None
    if isinstance(known, torch.Tensor) or (row is not None and row.WhichOneof("kind") == "tensor"):
        return torch.Tensor
    for symbolic, plain in ((torch.SymInt, int), (torch.SymFloat, float), (torch.SymBool, bool)):
        if isinstance(known, symbolic):
            return plain
    return None if known is None else type(known)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two sets of keyword arguments are identical, including types."""
    return list(one) == list(other) and all(_equal(one[name], other[name]) for name in one)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Node) or isinstance(other, Node):
        return one is other
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and repr(one) == repr(other)

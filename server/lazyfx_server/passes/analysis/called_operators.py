"""The operator that a node calls, under one name for all captures."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node

from lazyfx.shared.wire.targets.operator_schemas import operator_of
from lazyfx.shared.wire.values.descriptions import META_KEY
from lazyfx_server.passes.analysis import operator_facts
from lazyfx_server.passes.analysis.effects import argument
from lazyfx_server.passes.analysis.fake_run import UNKNOWN, FakeRun
from lazyfx_server.passes.analysis.walk import graph_modules
from lazyfx_server.passes.base import PassResult

NO_SHAPES = "skipped: the graph has no shapes"

_PYTHON = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.truediv: "div",
    operator.pow: "pow",
    operator.matmul: "matmul",
    operator.neg: "neg",
    operator.getitem: "getitem",
}


def operator_name(node: Node) -> str:
    """The operator that a node calls, without namespace and overload; "" for anything else.

    `aten.mul.Tensor`, `torch.mul`, `operator.mul` and the method `mul` are all "mul".
    """
    target: Any = node.target
    if node.op == "call_method":
        return str(target)
    if node.op != "call_function":
        return ""
    if (found := operator_of(target)) is not None:
        return found.name if found.namespace == "aten" else ""
    if type(target).__hash__ is None:
        return ""
    entry = operator_facts.torch_functions().get(target)
    return entry[0] if entry else _PYTHON.get(target, "")


def spelled_like(node: Node, name: str, overload: str = "default") -> Callable[..., Any]:
    """An operator in the style of the graph around a node: aten's overload or torch's function."""
    if isinstance(node.target, OpOverload):
        found: Callable[..., Any] = getattr(getattr(torch.ops.aten, name), overload)
        return found
    function: Callable[..., Any] = getattr(torch, name)
    return function


class KnownValues:
    """The metadata of a graph's values as plain fake tensors; nothing is computed."""

    def __init__(self, module: GraphModule) -> None:
        self._run = FakeRun(module)
        self._known: dict[Node, Any] = {}

    def tensor(self, node: object) -> torch.Tensor | None:
        """The value of a node if it is one strided tensor with plain sizes, else None."""
        if not isinstance(node, Node):
            return None
        if node not in self._known:
            self._known[node] = self._look(node)
        found: torch.Tensor | None = self._known[node]
        return found

    def attribute(self, path: str) -> torch.Tensor | None:
        """The value of a tensor attribute, read by a node or held by a module, if known."""
        node = Graph(owning_module=self._run.module).create_node("get_attr", path)
        return self._look(node)

    def _look(self, node: Node) -> torch.Tensor | None:
        value = self._run.known(node)
        if value is UNKNOWN and node.op == "get_attr":
            value = self._run.compute(node)
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            return None
        plain = all(type(n) is int for n in (*value.shape, *value.stride()))
        return value if plain else None

    @property
    def any_known(self) -> bool:
        """Whether the graph carries shapes at all."""
        return any(
            self.tensor(node) is not None
            for node in self._run.module.graph.nodes
            if node.op.startswith("call_")
        )


def first_operand(node: Node) -> Any:
    """The first operand of a call: its first positional argument, `input` or `self`."""
    return argument(node, 0, "input", node.kwargs.get("self"))


def requires_grad(module: GraphModule, known: KnownValues) -> bool:
    """Whether autograd may save values of a graph: a parameter or an input requires grad."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return True
    values = (known.tensor(node) for node in module.graph.nodes if node.op == "placeholder")
    return any(value is not None and value.requires_grad for value in values)


def set_dtype(node: Node, value: torch.Tensor, dtype: torch.dtype) -> None:
    """Record that a node's value is like this one, with another dtype.

    Args:
        node: The node whose metadata is set.
        value: A fake tensor from `KnownValues`.
        dtype: That of the node's value.
    """
    assert isinstance(value, FakeTensor)
    for key in ("example_value", META_KEY):
        node.meta.pop(key, None)
    with value.fake_mode:
        node.meta["val"] = torch.empty_strided(
            value.shape, value.stride(), dtype=dtype, device=value.device
        )


def same_place(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two fake tensors have the same dtype, device, sizes, strides and offset."""
    return (
        one.dtype == other.dtype
        and one.device == other.device
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.storage_offset() == other.storage_offset()
        and one.is_conj() == other.is_conj()
        and one.is_neg() == other.is_neg()
    )


def apply_to_each_graph(
    module: GraphModule, work: Callable[[GraphModule, KnownValues], int], note: str
) -> PassResult:
    """Apply a transformation that needs shapes to a module and its nested GraphModules.

    Args:
        module: The module.
        work: Changes one module in place; returns how many changes it made.
        note: The note, with {} for that number.
    """
    parts = [(part, KnownValues(part)) for part in graph_modules(module)]
    if not any(known.any_known for _, known in parts):
        return PassResult(module, False, NO_SHAPES)
    changed = 0
    for part, known in parts:
        here = work(part, known)
        if here:
            part.recompile()
        changed += here
    return PassResult(module, changed > 0, note.format(changed) if changed else "")

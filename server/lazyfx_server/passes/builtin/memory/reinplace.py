"""Passes that save memory by overwriting operands that are not read again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from lazyfx.shared.wire.targets.operator_schemas import facts
from lazyfx_server.passes.analysis.called_operators import NO_SHAPES, KnownValues, requires_grad
from lazyfx_server.passes.analysis.operator_facts import words
from lazyfx_server.passes.analysis.storage import StorageMap
from lazyfx_server.passes.analysis.walk import graph_modules
from lazyfx_server.passes.base import Pass, PassContext, PassResult

_POINTWISE = words(
    "relu sigmoid tanh gelu silu exp log sqrt rsqrt neg abs sin cos erf square reciprocal add sub "
    "mul div pow clamp clamp_min clamp_max hardtanh leaky_relu elu hardswish masked_fill"
)


@dataclass(frozen=True)
class Reinplace(Pass):
    """Lets element-wise aten calls overwrite operands that are not read again.

    Only for graphs without gradients: autograd saves operands for the backward, so a graph with any
    tensor that requires grad is left unchanged. The operand must be an intermediate value with one
    user and its own memory, and have the result's shape and dtype.
    """

    name: ClassVar[str] = "reinplace"
    version: ClassVar[int] = 2
    needs_shapes: ClassVar[bool] = True

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Changes the calls in place, including in nested GraphModules."""
        parts = [(part, KnownValues(part)) for part in graph_modules(module)]
        if not any(known.any_known for _, known in parts):
            return PassResult(module, False, NO_SHAPES)
        if any(requires_grad(part, known) for part, known in parts):
            return PassResult(module, False, "skipped: a tensor requires grad")
        changed = 0
        for part, known in parts:
            here = _reinplace(part, known)
            if here:
                part.recompile()
            changed += here
        return PassResult(module, changed > 0, f"{changed} calls in place" if changed else "")


def _reinplace(module: GraphModule, known: KnownValues) -> int:
    storage = StorageMap(module.graph)
    changed = 0
    for node in list(module.graph.nodes):
        twin = _in_place_overload(node)
        if twin is None or not _may_write(node, known, storage):
            continue
        node.target = twin
        changed += 1
    return changed


def _in_place_overload(node: Node) -> OpOverload[..., Any] | None:
    """The in-place overload with the same parameters."""
    target: Any = node.target
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return None
    _, name, overload = facts(target).operator
    if name not in _POINTWISE:
        return None
    packet = getattr(torch.ops.aten, f"{name}_", None)
    twin = getattr(packet, overload, None)
    if not isinstance(twin, OpOverload):
        return None
    ours, theirs = target._schema.arguments, twin._schema.arguments  # noqa: SLF001 - schemas
    return twin if [a.name for a in ours] == [a.name for a in theirs] else None


def _may_write(node: Node, known: KnownValues, storage: StorageMap) -> bool:
    operand = node.args[0] if node.args else None
    if not isinstance(operand, Node) or operand.op != "call_function":
        return False
    if len(operand.users) != 1 or node.all_input_nodes.count(operand) != 1:
        return False
    if node.args.count(operand) != 1 or storage.effects[operand].aliases:
        return False
    if not storage.effects[operand].pure or storage.written(operand) or storage.written(node):
        return False
    before, after = known.tensor(operand), known.tensor(node)
    if before is None or after is None:
        return False
    same = before.shape == after.shape and before.stride() == after.stride()
    dense = bool(torch._prims_common.is_non_overlapping_and_dense_or_false(before))  # noqa: SLF001 - no public way to ask
    return same and dense and before.dtype == after.dtype and before.device == after.device

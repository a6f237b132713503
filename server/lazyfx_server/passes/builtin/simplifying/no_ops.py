"""Passes that remove no-ops and redundant casts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import GraphModule, Node

from lazyfx_server.passes.analysis.called_operators import (
    KnownValues,
    apply_to_each_graph,
    first_operand,
    operator_name,
    same_place,
    set_dtype,
)
from lazyfx_server.passes.analysis.effects import argument
from lazyfx_server.passes.analysis.operator_facts import words
from lazyfx_server.passes.analysis.storage import StorageMap
from lazyfx_server.passes.base import Pass, PassContext, PassResult

# These may return their operand, or a view that differs only in its sizes.
_VIEWS = words(
    "view reshape expand permute transpose t squeeze unsqueeze flatten slice narrow contiguous "
    "to alias view_as reshape_as expand_as swapaxes movedim unflatten"
)
# The operand that makes them return a copy of the other one: name -> that operand.
_NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1, "true_divide": 1, "pow": 1}
_COPIES = words("clone _to_copy")
# These return all or some values of their operand, in another shape or order.
_MOVING = _VIEWS - {"to", "view_as", "reshape_as", "expand_as"} | {"clone"}
_CASTS = words("to _to_copy type float half bfloat16 double")


@dataclass(frozen=True)
class NoOpElimination(Pass):
    """Removes calls that return their operand unchanged.

    Views with the sizes and strides of their operand, casts to its own dtype, `x + 0`, `x * 1`, `x
    / 1`, `x ** 1`, and copies. Keeps values that are written to or returned to the caller, and
    anything of unknown shape.
    """

    name: ClassVar[str] = "no_op_elimination"
    version: ClassVar[int] = 2
    needs_shapes: ClassVar[bool] = True

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Removes in place, in the GraphModules inside too."""
        return apply_to_each_graph(module, _remove_no_ops, "{} no-ops removed")


@dataclass(frozen=True)
class RemoveDuplicateCasts(Pass):
    """Removes the first of two consecutive casts if no precision is lost.

    A cast to a dtype that represents every value of the previous one is bypassed by the next cast;
    if that returns to the first dtype, both are removed: bfloat16 to float32 to bfloat16. Views and
    copies between the two, if nothing else reads them, then use the first dtype.
    """

    name: ClassVar[str] = "remove_duplicate_casts"
    version: ClassVar[int] = 3
    needs_shapes: ClassVar[bool] = True

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Removes in place, in the GraphModules inside too."""
        return apply_to_each_graph(module, _remove_casts, "{} casts skipped")


def _remove_no_ops(module: GraphModule, known: KnownValues) -> int:
    storage = StorageMap(module.graph)
    removed = 0
    for node in list(module.graph.nodes):
        operand = _handed_back(node)
        if operand is None or not _may_go(node, storage):
            continue
        before, after = known.tensor(operand), known.tensor(node)
        if before is None or after is None:
            continue
        fresh = operator_name(node) not in _VIEWS
        alike = _same_values(before, after) if fresh else same_place(before, after)
        if not alike or (fresh and not _is_private(node, operand, storage)):
            continue
        node.replace_all_uses_with(operand)
        module.graph.erase_node(node)
        removed += 1
    return removed


def _handed_back(node: Node) -> Node | None:
    """The operand that a call may return unchanged, by its name and its literals."""
    name = operator_name(node)
    operand = first_operand(node)
    if not isinstance(operand, Node):
        return None
    if name in _VIEWS:
        return None if node.kwargs.get("copy") or _copies_by_place(node) else operand
    if name in _COPIES:
        return operand
    if name not in _NEUTRAL or node.kwargs.keys() & {"out", "rounding_mode", "alpha"}:
        return None
    other = argument(node, 1, "other", node.kwargs.get("exponent"))
    is_number = type(other) in (int, float)
    return operand if is_number and other == _NEUTRAL[name] and len(node.args) <= 2 else None


def _copies_by_place(node: Node) -> bool:
    return operator_name(node) == "to" and any(value is True for value in node.args)


def _may_go(node: Node, storage: StorageMap) -> bool:
    handed_out = any(user.op == "output" for user in node.users)
    return not (handed_out or storage.written(node)) and storage.effects[node].pure


def _is_private(node: Node, operand: Node, storage: StorageMap) -> bool:
    """Whether copy and original are indistinguishable: neither is written or returned."""
    return not (storage.written(operand) or storage.escapes(node))


def _same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.device == other.device
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.is_conj() == other.is_conj()
        and one.is_neg() == other.is_neg()
    )


def _remove_casts(module: GraphModule, known: KnownValues) -> int:
    storage = StorageMap(module.graph)
    # Nodes changed here no longer have the dtype in their metadata.
    changed: set[Node] = set()
    skipped = 0
    for node in list(module.graph.nodes):
        middle, views = _before_views(first_operand(node), known)
        source = _cast_operand(middle, known) if _cast_operand(node, known) and middle else None
        if middle is None or source is None or not _loses_nothing(source, middle, known):
            continue
        parts = (node, middle, source, *views)
        if any(storage.written(n) for n in parts) or not changed.isdisjoint(parts):
            continue
        if _skip(node, middle, source, views, known, storage):
            changed.update((node, middle, *views))
            skipped += 1
    return skipped


def _skip(
    node: Node,
    middle: Node,
    source: Node,
    views: list[Node],
    known: KnownValues,
    storage: StorageMap,
) -> bool:
    """Bypasses a cast before another one; False if the result would differ."""
    before, after = known.tensor(source), known.tensor(node)
    assert before is not None
    assert after is not None
    back = before.dtype == after.dtype
    operand = known.tensor(first_operand(node))
    if back and (storage.escapes(node) or operand is None or operand.stride() != after.stride()):
        return False
    (views[-1] if views else node).replace_input_with(middle, source)
    for view in views:
        value = known.tensor(view)
        assert value is not None
        set_dtype(view, value, before.dtype)
    if back:
        node.replace_all_uses_with(views[0] if views else source)
        node.graph.erase_node(node)
    if not middle.users:
        middle.graph.erase_node(middle)
    return True


def _before_views(node: object, known: KnownValues) -> tuple[Node | None, list[Node]]:
    """The source of a chain of views and copies with one user, and the chain, last first."""
    views: list[Node] = []
    while isinstance(node, Node) and operator_name(node) in _MOVING and len(node.users) == 1:
        source = first_operand(node)
        before, after = known.tensor(source), known.tensor(node)
        if before is None or after is None or before.dtype != after.dtype:
            break
        views.append(node)
        node = source
    return node if isinstance(node, Node) else None, views


def _cast_operand(node: Node, known: KnownValues) -> Node | None:
    """The operand that a call casts, if it does nothing else."""
    if operator_name(node) not in _CASTS:
        return None
    operand = first_operand(node)
    before, after = known.tensor(operand), known.tensor(node)
    if before is None or after is None or not isinstance(operand, Node):
        return None
    if before.device != after.device or before.stride() != after.stride():
        return None
    return operand if before.dtype != after.dtype else None


def _loses_nothing(source: Node, middle: Node, known: KnownValues) -> bool:
    before, after = known.tensor(source), known.tensor(middle)
    if before is None or after is None:
        return False
    if not (before.dtype.is_floating_point and after.dtype.is_floating_point):
        return False
    try:
        return torch.promote_types(before.dtype, after.dtype) == after.dtype
    except RuntimeError:  # torch does not promote dtypes of 8 bits or fewer
        return False

"""Writes that a compiler would perform otherwise than the graph does, so that it must be refused.

Tracing changes what some writes do (`write_that_tracing_changes`); a compiler that performs writes
at the end changes what is read after them (`used_after_write`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import combinations, product

import torch
from torch import nn
from torch.fx import GraphModule, Node

from lazyfx_server.passes.analysis.attribute_memory import memories_in
from lazyfx_server.passes.analysis.called_operators import operator_name
from lazyfx_server.passes.analysis.effects import Effects, effects_of
from lazyfx_server.passes.analysis.operator_facts import words
from lazyfx_server.passes.analysis.walk import attribute_at

# Views of which torch does not say so: a write to one is not seen through its operand.
_SECRET_VIEWS = words("_unsafe_view unsafe_split unsafe_split_with_sizes unsafe_chunk")
# Views through which autograd does not follow a write, or follows it in its own way.
_UNFOLLOWED_VIEWS = words("detach data as_strided")
# A view or a copy, depending on the strides that a value happens to have.
_VIEWS_OR_COPIES = words("contiguous reshape flatten ravel reshape_as")
# Calls whose results are contiguous, whatever the strides of their operands.
_CONTIGUOUS = words("linear mm bmm addmm zeros ones full")


def used_after_write(
    module: GraphModule, may_overlap: Callable[[int, int], bool]
) -> tuple[int, int] | None:
    """Places of two inputs, of which the second may be used after the first is written.

    If both are in one memory, a compiler that performs writes at the end gets another result.

    Args:
        module: The graph.
        may_overlap: Whether the inputs at two places may be in one memory.
    """
    reaches: dict[Node, frozenset[int]] = {}
    written: set[int] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            reaches[node] = frozenset((len(reaches),))
            continue
        used = frozenset[int]().union(*(reaches[n] for n in node.all_input_nodes))
        if node.op == "output":
            break
        effects = effects_of(node)
        here = frozenset[int]().union(*(reaches[n] for n in effects.writes))
        for one, other in product(sorted(written), sorted(used)):
            if one != other and may_overlap(one, other):
                return one, other
        for one, other in combinations(sorted(here), 2):
            if may_overlap(one, other):
                return one, other
        reaches[node] = frozenset[int]().union(*(reaches[n] for n in effects.aliases))
        written |= here
    return None


def write_that_tracing_changes(module: GraphModule, *, trains: bool) -> str:
    """Why tracing would change what a write does: the call and the reason, or "".

    Args:
        module: The graph.
        trains: Whether a tensor requires grad.
    """
    views: dict[Node, str] = {}
    # The memory that such a view, or what may be one, may share.
    secret: dict[Node, set[Hashable]] = {}
    may_copy: dict[Node, set[Hashable]] = {}
    reaches: dict[Node, set[Hashable]] = {}
    written: set[Hashable] = set()
    for node in module.graph.nodes:
        if node.op == "output":
            break
        effects = effects_of(node) if node.op.startswith("call_") else Effects()
        through = [views[n] for n in effects.writes if n in views]
        if through:
            return f"{node.name} writes through {through[0]}"
        if trains and _scales_weights(node, effects):
            return f"{node.name} scales its weight without autograd"
        reaches[node] = _reached_by(node, effects, reaches)
        here = set[Hashable]().union(*(reaches[n] for n in effects.writes))
        if reason := _shown_by_others(node, here, secret, may_copy):
            return reason
        written |= here
        name = operator_name(node)
        kind = _kind_of_view(node, name)
        inherited = [views[n] for n in effects.aliases if n in views]
        if kind or inherited:
            views[node] = kind or inherited[0]
        if name in _SECRET_VIEWS:
            secret[node] = reaches[node]
        if name in _VIEWS_OR_COPIES or _flattens(node):
            may_copy[node] = _of_unknown_strides(reaches[node], effects)
            if any(n in written for n in may_copy[node] if _is_input(n)):
                return f"{node.name} is a view or a copy of an input that is written"
    return ""


def _shown_by_others(
    node: Node,
    written: set[Hashable],
    secret: dict[Node, set[Hashable]],
    may_copy: dict[Node, set[Hashable]],
) -> str:
    """Why tracing would not show what a call writes through an earlier view, or ""."""
    for view, memories in secret.items():
        if memories & written:
            return (
                f"{node.name} writes what {view.name} shows, whose result is not known to be a view"
            )
    for view, memories in may_copy.items():
        if memories & written:
            return f"{view.name} is a view or a copy of what {node.name} writes"
    return ""


def _reached_by(node: Node, effects: Effects, reaches: dict[Node, set[Hashable]]) -> set[Hashable]:
    """The memory that the result of a node may be in: the nodes that made it, or attributes."""
    if node.op == "get_attr":
        return set(memories_in(attribute_at(node.graph.owning_module, str(node.target))))
    return set[Hashable]().union(*(reaches[n] for n in effects.aliases)) or {node}


def _of_unknown_strides(memories: set[Hashable], effects: Effects) -> set[Hashable]:
    """The memory of values that a later call may be given, or may make, with other strides."""
    operands = effects.aliases
    return {m for m in memories if not (m in operands and _is_contiguous(m))}


def _is_contiguous(value: object) -> bool:
    if not isinstance(value, Node):
        return False
    if value.op == "call_module":
        called = attribute_at(value.graph.owning_module, str(value.target))
        return isinstance(called, nn.Linear)
    return operator_name(value) in _CONTIGUOUS and "out" not in value.kwargs


def _is_input(value: object) -> bool:
    return isinstance(value, Node) and value.op == "placeholder"


def _flattens(node: Node) -> bool:
    """Whether a called module may return a view or a copy of its input."""
    if node.op != "call_module":
        return False
    called = attribute_at(node.graph.owning_module, str(node.target))
    parts = called.modules() if isinstance(called, nn.Module) else ()
    return any(
        isinstance(part, nn.Flatten)
        or (
            isinstance(part, GraphModule)
            and any(operator_name(inner) in _VIEWS_OR_COPIES for inner in part.graph.nodes)
        )
        for part in parts
    )


def _scales_weights(node: Node, effects: Effects) -> bool:
    """Whether an embedding scales down rows of its weight, which it does without autograd."""
    if node.op != "call_module":
        return operator_name(node).startswith("embedding") and bool(effects.writes)
    called = attribute_at(node.graph.owning_module, str(node.target))
    parts = called.modules() if isinstance(called, nn.Module) else ()
    return any(getattr(part, "max_norm", None) is not None for part in parts)


def _kind_of_view(node: Node, name: str) -> str:
    if name in _SECRET_VIEWS:
        return f"{name}, whose result is not known to be a view"
    casts = name == "view" and any(isinstance(value, torch.dtype) for value in node.args)
    of_getattr = node.target is getattr and node.args[1:] == ("data",)
    # Whatever the metadata says: a graph may be called with tensors that require grad.
    if name in _UNFOLLOWED_VIEWS or casts or of_getattr:
        return f"{name or 'data'}, which autograd does not follow"
    return ""

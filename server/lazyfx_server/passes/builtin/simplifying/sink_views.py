"""Passes that move views: transposes and reshapes after element-wise calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import GraphModule, Node

from lazyfx.shared.wire.values.descriptions import META_KEY
from lazyfx_server.passes.analysis.called_operators import (
    KnownValues,
    apply_to_each_graph,
    first_operand,
    operator_name,
    spelled_like,
)
from lazyfx_server.passes.analysis.operator_facts import words
from lazyfx_server.passes.analysis.storage import StorageMap
from lazyfx_server.passes.base import Pass, PassContext, PassResult

# Element-wise calls with one operand, independent of its shape.
_POINTWISE = words(
    "relu sigmoid tanh gelu silu exp log sqrt rsqrt neg abs sin cos erf square reciprocal "
    "leaky_relu elu softplus hardswish hardtanh mish relu6 sign floor ceil"
)
_PERMUTING = words("transpose permute t")
_RESHAPING = words("view reshape")


@dataclass(frozen=True)
class SinkViews(Pass):
    """Moves transposes and reshapes after element-wise calls and merges adjacent ones.

    relu(transpose(x)) becomes transpose(relu(x)); a transpose of a transpose becomes one permute,
    or nothing if they cancel; a reshape of a reshape becomes one. Values that are written to, have
    other users or are returned to the caller are left unchanged.
    """

    name: ClassVar[str] = "sink_views"
    version: ClassVar[int] = 2
    needs_shapes: ClassVar[bool] = True

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Moves and merges in place, including in nested GraphModules."""
        return apply_to_each_graph(module, _sink_views, "{} views moved or merged")


def _sink_views(module: GraphModule, known: KnownValues) -> int:
    storage = StorageMap(module.graph)
    changed = 0
    for node in list(module.graph.nodes):
        view = first_operand(node)
        if not isinstance(view, Node) or len(view.users) != 1 or _is_touched(storage, node, view):
            continue
        if _sinks(node, view, known) and _has_partner(node):
            _swap(node, view)
            changed += 1
        elif _merges(node, view, known):
            changed += 1
    return changed


def _is_touched(storage: StorageMap, *nodes: Node) -> bool:
    new = any(node not in storage.position for node in nodes)
    return new or any(storage.written(n) or not storage.effects[n].pure for n in nodes)


def _is_view(node: Node) -> bool:
    name = operator_name(node)
    return name in _PERMUTING or name in _RESHAPING


def _sinks(node: Node, view: Node, known: KnownValues) -> bool:
    if operator_name(node) not in _POINTWISE or not _is_view(view):
        return False
    if len(node.all_input_nodes) != 1 or node.kwargs.get("inplace"):
        return False
    before = known.tensor(first_operand(view))
    after = known.tensor(node)
    if before is None or after is None or before.dtype != after.dtype:
        return False
    # Element-wise results have their operand's strides only if its memory is dense.
    return before.dtype.is_floating_point and before.is_contiguous()


def _has_partner(node: Node) -> bool:
    """Whether there is another view further down the chain of element-wise calls."""
    while len(node.users) == 1:
        (node,) = node.users
        if _is_view(node):
            return True
        if operator_name(node) not in _POINTWISE or len(node.all_input_nodes) != 1:
            return False
    return False


def _swap(node: Node, view: Node) -> None:
    """f(view(x)) becomes view(f(x)); each node keeps its name and takes the other's position."""
    source = view.all_input_nodes[0]
    users = list(node.users)
    node.replace_input_with(view, source)
    metadata = dict(node.meta)
    known = ("val", "example_value", META_KEY)
    node.meta = {k: v for k, v in source.meta.items() if k in known}
    view.replace_input_with(source, node)
    view.meta = metadata
    node.append(view)
    for user in users:
        user.replace_input_with(node, view)


def _merges(node: Node, view: Node, known: KnownValues) -> bool:
    """Merges two views into one, if they are of the same kind."""
    source = first_operand(view)
    after, before = known.tensor(node), known.tensor(source)
    if after is None or before is None or not isinstance(source, Node):
        return False
    names = operator_name(node), operator_name(view)
    if all(name in _RESHAPING for name in names) and before.is_contiguous():
        return _replace(node, view, source, "reshape", list(after.shape))
    if not all(name in _PERMUTING for name in names):
        return False
    first, second = _order(view, before.ndim), _order(node, before.ndim)
    if first is None or second is None:
        return False
    order = [first[i] for i in second]
    return _replace(node, view, source, "permute", order)


def _replace(node: Node, view: Node, source: Node, name: str, sizes: list[int]) -> bool:
    graph = node.graph
    handed_out = any(user.op == "output" for user in node.users)
    if name == "permute" and sizes == sorted(sizes) and not handed_out:
        node.replace_all_uses_with(source)
    else:
        with graph.inserting_before(node):
            merged = graph.call_function(spelled_like(node, name), (source, sizes))
        merged.meta = dict(node.meta)
        node.replace_all_uses_with(merged)
    graph.erase_node(node)
    graph.erase_node(view)
    return True


def _order(node: Node, dims: int) -> list[int] | None:
    """The permutation of dimensions that a view applies."""
    name, args = operator_name(node), list(node.args[1:])
    if node.kwargs or not all(_is_ints(arg) for arg in args):
        return None
    order: Any = list(range(dims))
    if name == "t":
        return order[::-1] if not args else None
    if name == "transpose" and len(args) == 2:
        one, two = args
        order[one], order[two] = order[two], order[one]
        return list(order)
    if name != "permute":
        return None
    given: Any = args[0] if len(args) == 1 and isinstance(args[0], list | tuple) else args
    return [int(d) % dims for d in given]


def _is_ints(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return all(type(each) is int for each in values)

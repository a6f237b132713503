"""Passes that find attention: products, scale, mask and softmax become one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from lazyfx_server.passes.base import Pass, PassContext, PassResult
from lazyfx_server.passes.calls import KnownValues, first_operand, in_each, operator_name
from lazyfx_server.passes.effects import argument
from lazyfx_server.passes.storage import StorageMap


@dataclass(frozen=True)
class FuseAttention(Pass):
    """Replaces softmax(q @ k.T * scale + mask) @ v by scaled_dot_product_attention.

    With or without a scale (a factor or a divisor, on the product or on the query) and an
    additive floating mask, in any spelling of the captures. Attention with dropout that is on,
    with values in other precisions on the way, or whose parts something else reads, stays.
    """

    name: ClassVar[str] = "fuse_attention"
    needs_shapes: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-2

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Replaces in place, in the GraphModules inside too."""
        return in_each(module, _fuse_all, "{} attentions fused")


@dataclass(slots=True)
class _Attention:
    query: Node
    key: Node
    value: Node
    mask: Node | None
    scale: float
    inner: list[Node]


def _fuse_all(module: GraphModule, known: KnownValues) -> int:
    storage = StorageMap(module.graph)
    fused = 0
    for node in list(module.graph.nodes):
        found = _attention_at(node, known, storage)
        if found is not None:
            _fuse(node, found)
            fused += 1
    return fused


def _attention_at(node: Node, known: KnownValues, storage: StorageMap) -> _Attention | None:
    if operator_name(node) not in {"matmul", "bmm"} or len(node.args) != 2:
        return None
    inner: list[Node] = []
    softmax = _skip(node.args[0], inner, known, ("expand", "view", "reshape"))
    if softmax is None or operator_name(softmax) not in {"softmax", "_softmax"}:
        return None
    if argument(softmax, 1, "dim") not in (-1, _dims(softmax, known) - 1):
        return None
    if softmax.kwargs.get("dtype") is not None:
        return None
    inner.append(softmax)
    scores, mask = _take_mask(softmax.args[0], inner, known)
    scores, scale = _take_scale(scores, inner, known)
    if scores is None or operator_name(scores) not in {"matmul", "bmm"} or len(scores.args) != 2:
        return None
    inner.append(scores)
    query, transposed = scores.args
    key = _transposed(transposed, known)
    value = node.args[1]
    if key is None or not isinstance(query, Node) or not isinstance(value, Node):
        return None
    found = _Attention(query, key, value, mask, scale, inner)
    return found if _fits(node, found, known, storage) else None


def _skip(node: Any, inner: list[Node], known: KnownValues, names: tuple[str, ...]) -> Node | None:
    """Goes up through calls that change no shape here."""
    while isinstance(node, Node) and operator_name(node) in names:
        source = first_operand(node)
        before, after = known.tensor(source), known.tensor(node)
        if before is None or after is None or before.shape != after.shape:
            return None
        inner.append(node)
        node = source
    return node if isinstance(node, Node) else None


def _take_mask(node: Any, inner: list[Node], known: KnownValues) -> tuple[Node | None, Node | None]:
    node = _skip(node, inner, known, ("view", "reshape"))
    if node is None or operator_name(node) != "add" or len(node.args) != 2 or node.kwargs:
        return node, None
    scores, mask = node.args
    one, two = known.tensor(scores), known.tensor(mask)
    if one is None or two is None or one.dtype != two.dtype or two.ndim > one.ndim:
        return None, None
    # The scores have the shape of the sum; the mask is what is spread over them.
    whole = known.tensor(node)
    if whole is None or one.shape != whole.shape:
        return None, None
    inner.append(node)
    assert isinstance(mask, Node)
    return _skip(scores, inner, known, ("view", "reshape")), mask


def _take_scale(
    node: Node | None, inner: list[Node], known: KnownValues
) -> tuple[Node | None, float]:
    if node is None or operator_name(node) not in {"mul", "div"} or node.kwargs:
        return node, 1.0
    by = node.args[1]
    if type(by) not in (int, float) or by == 0:
        return None, 1.0
    inner.append(node)
    scale = float(by) if operator_name(node) == "mul" else 1.0 / float(by)  # type: ignore[arg-type]
    return _skip(node.args[0], inner, known, ("view", "reshape")), scale


def _transposed(node: Any, known: KnownValues) -> Node | None:
    """What a node is the transpose of, in its last two dimensions."""
    if not isinstance(node, Node) or operator_name(node) not in {"transpose", "permute"}:
        return None
    source = first_operand(node)
    value = known.tensor(source)
    if value is None or not isinstance(source, Node):
        return None
    dims = value.ndim
    order = list(range(dims))
    given: Any = node.args[1:]
    if operator_name(node) == "transpose":
        if len(given) != 2 or not all(type(d) is int for d in given):
            return None
        if sorted(d % dims for d in given) != order[-2:]:
            return None
        return source
    flat = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
    swapped = [*order[:-2], dims - 1, dims - 2]
    return source if [d % dims for d in flat if type(d) is int] == swapped else None


def _dims(node: Node, known: KnownValues) -> int:
    value = known.tensor(node)
    return value.ndim if value is not None else 0


def _fits(node: Node, found: _Attention, known: KnownValues, storage: StorageMap) -> bool:
    tensors = [known.tensor(n) for n in (found.query, found.key, found.value, node)]
    if any(t is None for t in tensors):
        return False
    query, key, value, result = (t for t in tensors if t is not None)
    alike = query.dtype == key.dtype == value.dtype == result.dtype and query.device == key.device
    shaped = (
        query.ndim == key.ndim == value.ndim == result.ndim in (3, 4)
        and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
        and query.shape[-1] == key.shape[-1]
    )
    if not (alike and shaped and query.dtype.is_floating_point):
        return False
    if any(len(n.users) != 1 or storage.written(n) for n in found.inner):
        return False
    start, end = min(storage.position[n] for n in found.inner), storage.position[node]
    crossing = any(
        start <= place <= end for n, place in storage.position.items() if storage.effects[n].state
    )
    operands = (found.query, found.key, found.value, *([found.mask] if found.mask else []))
    written = any(storage.written_between(n, start, end, frozenset()) for n in operands)
    return not (crossing or written)


def _fuse(node: Node, found: _Attention) -> None:
    graph = node.graph
    aten = isinstance(node.target, OpOverload)
    target: Any = torch.ops.aten.scaled_dot_product_attention.default
    if not aten:
        target = torch.nn.functional.scaled_dot_product_attention
    with graph.inserting_before(node):
        attention = graph.call_function(
            target,
            (found.query, found.key, found.value),
            {"attn_mask": found.mask, "scale": found.scale},
        )
    attention.meta = dict(node.meta)
    node.replace_all_uses_with(attention)
    for dead in (node, *found.inner):
        if not dead.users:
            graph.erase_node(dead)

"""Finds attention in a graph, in any form: products, scale, masks and a softmax."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.fx import Node

from lazyfx_server.passes.analysis.called_operators import KnownValues, first_operand, operator_name
from lazyfx_server.passes.analysis.effects import argument
from lazyfx_server.passes.analysis.operator_facts import words
from lazyfx_server.passes.analysis.storage import StorageMap
from lazyfx_server.passes.patterns.attention_parts import Attention, Mask, readers, view_source

_PRODUCTS = words("matmul bmm")
_SOFTMAXES = words("softmax _softmax _safe_softmax special_softmax")
_CASTS = words("to _to_copy type type_as float double half bfloat16")
# In-place calls on the scores compute the same as calls without the underscore.
_IN_PLACE = {operator.iadd: "add", operator.imul: "mul", operator.itruediv: "div"}
# Bound on calls between the softmax and the product of query and key, and on either side of them.
_LONGEST_WAY = 24


def attention_at(node: Node, known: KnownValues, storage: StorageMap) -> Attention | None:
    """The attention whose last product a node is, if nothing else reads its parts."""
    if operator_name(node) not in _PRODUCTS or len(node.args) != 2:
        return None
    weights, value = node.args
    reader = _Reader(known, storage)
    softmax, way = reader.up(weights)
    if softmax is None or operator_name(softmax) not in _SOFTMAXES or not isinstance(value, Node):
        return None
    scores = known.tensor(softmax)
    if scores is None or argument(softmax, 1, "dim") not in (-1, scores.ndim - 1):
        return None
    found = reader.scores(first_operand(softmax), value, len(way))
    if found is None:
        return None
    inner = (*way, softmax, *found.inner)
    found = replace(found, shape=tuple(scores.shape), inner=inner)
    return found if _fits(node, found, known) and _stands_alone(node, found, storage) else None


class _Reader:
    """Walks up from the softmax, over nodes that belong to the attention only."""

    def __init__(self, known: KnownValues, storage: StorageMap) -> None:
        self._known = known
        self._storage = storage

    def up(self, node: object) -> tuple[Node | None, tuple[Node, ...]]:
        """The first node that computes something, and the views on the way to it."""
        way: list[Node] = []
        while len(way) < _LONGEST_WAY:
            source = view_source(node, self._known) or self._cast(node) or self._dropout(node)
            if source is None:
                break
            assert isinstance(node, Node)
            way.append(node)
            node = source
        return node if isinstance(node, Node) else None, tuple(way)

    def scores(self, start: object, value: Node, depth: int = 0) -> Attention | None:
        """The attention whose scores a node is, without its softmax."""
        node, way = self.up(start)
        depth += len(way) + 1
        if node is None or depth > _LONGEST_WAY or len(readers(node)) != 1:
            return None
        found = self._read(node, value, depth)
        return None if found is None else replace(found, inner=(*way, node, *found.inner))

    def _read(self, node: Node, value: Node, depth: int) -> Attention | None:
        name = _name(node)
        if name in _PRODUCTS and len(node.args) == 2:
            query, key = node.args
            both = isinstance(query, Node) and isinstance(key, Node)
            return Attention(query, key, value) if both else None  # type: ignore[arg-type]
        if name == "baddbmm":
            return self._product_and_sum(node, value)
        if node.kwargs or len(node.args) not in (2, 3):
            return None
        if name == "add":
            return self._sum(node, value, depth)
        if name in {"mul", "div"}:
            return self._scaled(node, name, value, depth)
        if name in {"masked_fill", "where"}:
            return self._hidden(node, name, value, depth)
        return None

    def _product_and_sum(self, node: Node, value: Node) -> Attention | None:
        """`baddbmm`: an addition and a product in one."""
        summand = first_operand(node)
        query, key = argument(node, 1, "batch1"), argument(node, 2, "batch2")
        beta, alpha = _number(node.kwargs.get("beta", 1)), _number(node.kwargs.get("alpha", 1))
        shape = self._shape(node)
        nodes = [n for n in (summand, query, key) if isinstance(n, Node)]
        if beta != 1 or alpha is None or shape is None or len(nodes) != 3:
            return None
        return Attention(nodes[1], nodes[2], value, alpha, masks=(Mask(nodes[0], shape),))

    def _sum(self, node: Node, value: Node, depth: int) -> Attention | None:
        shape = self._shape(node)
        for scores, mask in self._operand_orders(node):
            summand = self._known.tensor(mask)
            if summand is None or shape is None or self._shape(scores) != shape:
                continue
            found = self.scores(scores, value, depth)
            if found is not None and isinstance(mask, Node):
                return replace(found, masks=(*found.masks, Mask(mask, shape)))
        return None

    def _scaled(self, node: Node, name: str, value: Node, depth: int) -> Attention | None:
        shape = self._shape(node)
        for scores, by in self._operand_orders(node)[: 1 if name == "div" else 2]:
            number = type(by) in (int, float) and by != 0
            tensor = self._known.tensor(by)
            if not number and (tensor is None or tensor.ndim or not tensor.is_floating_point()):
                continue
            if shape is None or self._shape(scores) != shape:
                continue
            found = self.scores(scores, value, depth)
            if found is None or found.masks:
                continue
            if isinstance(by, Node):
                return replace(found, factors=(*found.factors, (name, by)))
            factor = float(by)  # type: ignore[arg-type]
            return replace(found, scale=found.scale * (factor if name == "mul" else 1 / factor))
        return None

    def _hidden(self, node: Node, name: str, value: Node, depth: int) -> Attention | None:
        if len(node.args) != 3:
            return None
        hides = name == "masked_fill"
        if hides:
            scores, condition, fill = node.args
        elif isinstance(node.args[1], Node):
            condition, scores, fill = node.args
        else:
            condition, fill, scores = node.args
            hides = True
        shape, mask, number = self._shape(node), self._known.tensor(condition), _number(fill)
        if shape is None or mask is None or number is None or self._shape(scores) != shape:
            return None
        # A number that absorbs anything added to it; with other numbers, an additive mask would
        # differ.
        if mask.dtype != torch.bool or number > _least(self._known.tensor(node)):
            return None
        found = self.scores(scores, value, depth)
        if found is None or not isinstance(condition, Node):
            return None
        return replace(found, masks=(*found.masks, Mask(condition, shape, number, hides)))

    def _operand_orders(self, node: Node) -> Sequence[tuple[object, object]]:
        """The operands of a binary call, as (scores, other); in place, the scores come first."""
        if len(node.args) != 2:
            return []
        one, other = node.args
        return [(one, other), (other, one)][: 1 if self._storage.effects[node].writes else 2]

    def _cast(self, node: object) -> Node | None:
        if not isinstance(node, Node) or operator_name(node) not in _CASTS:
            return None
        source = first_operand(node)
        before, after = self._known.tensor(source), self._known.tensor(node)
        if before is None or after is None or not isinstance(source, Node):
            return None
        both = before.is_floating_point() and after.is_floating_point()
        return source if both and before.device == after.device else None

    def _dropout(self, node: object) -> Node | None:
        if not isinstance(node, Node) or operator_name(node) != "dropout":
            return None
        source = first_operand(node)
        pure = self._storage.effects[node].pure
        return source if pure and isinstance(source, Node) else None

    def _shape(self, node: object) -> tuple[int, ...] | None:
        value = self._known.tensor(node)
        return None if value is None or value.ndim < 2 else tuple(value.shape)


def _fits(node: Node, found: Attention, known: KnownValues) -> bool:
    """Whether dtypes and sizes match one attention, with equal or expanded batches."""
    tensors = [known.tensor(n) for n in (found.query, found.key, found.value, node)]
    query, key, value, result = (t for t in tensors) if all(t is not None for t in tensors) else (
        None, None, None, None,
    )  # fmt: skip
    if query is None or key is None or value is None or result is None:
        return False
    alike = query.dtype == key.dtype == value.dtype == result.dtype and query.is_floating_point()
    if not alike or query.device != key.device or min(t.ndim for t in (query, key, value)) < 2:
        return False
    summands = [known.tensor(mask.node) for mask in found.masks if mask.fill is None]
    if any(summand is None or summand.dtype != query.dtype for summand in summands):
        return False
    lead, (rows, columns) = found.shape[:-2], found.shape[-2:]
    return (
        1 <= len(lead) <= 3
        and query.shape[-2:] == (rows, key.shape[-2])
        and key.shape[-1] == value.shape[-2] == columns
        and result.numel() == torch.Size((*lead, rows, value.shape[-1])).numel()
        and all(_spreads(tuple(t.shape[:-2]), lead) for t in (query, key, value))
    )


def _spreads(given: tuple[int, ...], lead: tuple[int, ...]) -> bool:
    """Whether batches can be regrouped or expanded to those of the scores."""
    if torch.Size(given).numel() == torch.Size(lead).numel():
        return True
    pairs = zip(reversed(given), reversed(lead), strict=False)
    return len(given) <= len(lead) and all(one in (1, other) for one, other in pairs)


def _stands_alone(node: Node, found: Attention, storage: StorageMap) -> bool:
    """Whether nothing else reads or writes its parts, and there is no context switch in between."""
    inner = frozenset(storage.position[part] for part in found.inner)
    start, end = min(inner), storage.position[node]
    for part in found.inner:
        effects = storage.effects[part]
        over_scores = bool(effects.writes) and found.inner_holds(effects.writes)
        in_place = over_scores and not (effects.random or effects.state)
        if len(readers(part)) != 1 or not (effects.pure or in_place):
            return False
        if storage.written_between(part, 0, len(storage.position), inner):
            return False
    crossing = any(
        start <= place <= end for n, place in storage.position.items() if storage.effects[n].state
    )
    return not crossing and not any(
        storage.written_between(each, max(start, storage.position[each] + 1), end, inner)
        for each in found.operands
    )


def _name(node: Node) -> str:
    """The operator of a node, without the suffix of in-place forms."""
    if node.op == "call_function" and type(node.target).__hash__ and node.target in _IN_PLACE:
        return _IN_PLACE[node.target]
    return operator_name(node).removesuffix("_")


def _number(value: object) -> float | None:
    """A number, or the fill value of a tensor."""
    if isinstance(value, Node) and operator_name(value) in {"full", "scalar_tensor"}:
        value = value.args[-1] if value.args else None
    return float(value) if isinstance(value, int | float) and type(value) is not bool else None


def _least(scores: torch.Tensor | None) -> float:
    if scores is None or not scores.is_floating_point():
        return float("-inf")
    return torch.finfo(scores.dtype).min / 2

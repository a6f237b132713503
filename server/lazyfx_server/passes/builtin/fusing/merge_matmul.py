"""Passes that merge matrix products with a common operand."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from lazyfx_server.passes.analysis.called_operators import (
    KnownValues,
    apply_to_each_graph,
    operator_name,
    spelled_like,
)
from lazyfx_server.passes.analysis.storage import StorageMap
from lazyfx_server.passes.base import Pass, PassContext, PassResult

# Operator -> positions of the bias, the left and the right operand, and the dimension of the right
# operand that is the number of result columns.
_PRODUCTS = {
    "mm": (None, 0, 1, 1),
    "matmul": (None, 0, 1, 1),
    "addmm": (0, 1, 2, 1),
    "linear": (2, 0, 1, 0),
}


@dataclass(frozen=True)
class MergeMatmul(Pass):
    """Merges matrix products with the same left operand: x @ a and x @ b become x @ [a, b].

    One large product instead of several small ones: the projections of attention, as mm, addmm,
    matmul or linear. The right operands must be available before the first product and be matrices;
    biases must be vectors, and either all products have one or none does. Products whose results
    are written to, or returned to the caller, are not merged.
    """

    name: ClassVar[str] = "merge_matmul"
    version: ClassVar[int] = 2
    needs_shapes: ClassVar[bool] = True

    at_least: int = field(default=2, metadata={"help": "Minimum number of products to merge."})

    def __post_init__(self) -> None:
        if self.at_least < 2:
            raise ValueError("at_least must be 2 or more")

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Merges in place, including in nested GraphModules."""

        def merge(part: GraphModule, known: KnownValues) -> int:
            return _merge(part, known, self.at_least)

        return apply_to_each_graph(module, merge, "{} products merged")


@dataclass(frozen=True, slots=True)
class _Product:
    """One matrix product: left @ right, or left @ right.T, and a bias."""

    node: Node
    left: Node
    right: Node
    bias: Node | None
    columns: int
    dimension: int


def _merge(module: GraphModule, known: KnownValues, at_least: int) -> int:
    storage = StorageMap(module.graph)
    groups: defaultdict[tuple[object, ...], list[_Product]] = defaultdict(list)
    region = 0
    for node in module.graph.nodes:
        if storage.effects[node].state:
            region += 1
        product = _product(node, known)
        if product is not None and _is_private(product, storage):
            groups[(region, *_shared(product, known))].append(product)
    merged = 0
    for group in groups.values():
        ready = _ready_together(group, storage)
        if len(ready) >= at_least:
            _merge_group(module, ready)
            merged += len(ready)
    return merged


def _product(node: Node, known: KnownValues) -> _Product | None:
    name = operator_name(node)
    if name not in _PRODUCTS or node.kwargs:
        return None
    bias_place, left_place, right_place, dimension = _PRODUCTS[name]
    if len(node.args) < 2 or (name == "addmm" and len(node.args) != 3):
        return None
    left, right = node.args[left_place], node.args[right_place]
    bias = None
    if bias_place is not None and bias_place < len(node.args):
        bias = node.args[bias_place]
    one, two = known.tensor(left), known.tensor(right)
    if one is None or two is None or two.ndim != 2 or one.ndim < 2:
        return None
    columns = int(two.shape[dimension])
    if bias is not None:
        vector = known.tensor(bias)
        if vector is None or tuple(vector.shape) != (columns,):
            return None
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    assert bias is None or isinstance(bias, Node)
    return _Product(node, left, right, bias, columns, dimension)


def _is_private(product: _Product, storage: StorageMap) -> bool:
    return not (storage.written(product.node) or storage.escapes(product.node))


def _shared(product: _Product, known: KnownValues) -> tuple[object, ...]:
    """What products must have in common to be merged."""
    right = known.tensor(product.right)
    assert right is not None
    has_bias = product.bias is not None
    inner = right.shape[1 - product.dimension]
    return product.left, inner, right.dtype, right.device, has_bias, str(product.node.target)


def _ready_together(group: Sequence[_Product], storage: StorageMap) -> list[_Product]:
    """The products whose operands are available, and the same, before the first product."""
    first = storage.position[group[0].node]

    def exists(product: _Product) -> bool:
        operands = [product.right, *([product.bias] if product.bias is not None else [])]
        last = storage.position[product.node]
        return all(storage.position[operand] < first for operand in operands) and not any(
            storage.written_between(operand, first, last, frozenset())
            for operand in (product.left, *operands)
        )

    return [product for product in group if exists(product)]


def _merge_group(module: GraphModule, group: Sequence[_Product]) -> None:
    graph, first = module.graph, group[0]
    node = first.node
    aten = isinstance(node.target, OpOverload)
    split: Any = torch.ops.aten.split_with_sizes.default if aten else torch.split
    cat = spelled_like(node, "cat")
    with graph.inserting_before(node):
        right = graph.call_function(cat, ([p.right for p in group], first.dimension))
        args = [right if argument is first.right else argument for argument in node.args]
        if first.bias is not None:
            bias = graph.call_function(cat, ([p.bias for p in group], 0))
            args = [bias if argument is first.bias else argument for argument in args]
        product = graph.create_node(node.op, node.target, tuple(args))
        pieces = graph.call_function(split, (product, [p.columns for p in group], -1))
        for place, each in enumerate(group):
            piece = graph.call_function(operator.getitem, (pieces, place))
            # The results had separate memory, and views of them may depend on its layout.
            options: dict[str, Any] = {"memory_format": torch.contiguous_format}
            whole = graph.call_function(spelled_like(node, "clone"), (piece,), options)
            whole.meta = dict(each.node.meta)
            each.node.replace_all_uses_with(whole)
    for each in reversed(group):
        graph.erase_node(each.node)

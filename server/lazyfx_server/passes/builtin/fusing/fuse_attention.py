"""Passes that fuse attention: products, scale, mask and softmax become one call."""

from __future__ import annotations

from dataclasses import dataclass
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
from lazyfx_server.passes.patterns.attention_parts import (
    Attention,
    Mask,
    checks,
    readers,
    transposed,
    view_source,
)
from lazyfx_server.passes.patterns.attentions import attention_at


@dataclass(frozen=True)
class FuseAttention(Pass):
    """Replaces softmax(q @ k.T * scale + mask) @ v with scaled_dot_product_attention.

    In any form that captures produce: with a scale (numbers or zero-dimensional tensors, on the
    product or on the query), with additive and boolean masks, with views, copies and the casts of a
    softmax in float32. Attention with active dropout, or with intermediate values that are used
    elsewhere, is left unchanged.
    """

    name: ClassVar[str] = "fuse_attention"
    version: ClassVar[int] = 3
    needs_shapes: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-2

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Replaces in place, including in nested GraphModules."""
        return apply_to_each_graph(module, _fuse_all, "{} attentions fused")


def _fuse_all(module: GraphModule, known: KnownValues) -> int:
    storage = StorageMap(module.graph)
    fused = 0
    for node in list(module.graph.nodes):
        found = attention_at(node, known, storage)
        if found is not None:
            _Fusion(node, known, storage).fuse(found)
            fused += 1
    return fused


class _Fusion:
    """Builds the call in the style of the graph around the last product of an attention."""

    def __init__(self, node: Node, known: KnownValues, storage: StorageMap) -> None:
        self._node = node
        self._known = known
        self._storage = storage

    def fuse(self, found: Attention) -> None:
        """Replaces the last product by the call, and removes what becomes unused."""
        node, graph = self._node, self._node.graph
        *lead, rows, columns = found.shape
        query, value = self._known.tensor(found.query), self._known.tensor(found.value)
        assert query is not None
        assert value is not None
        inside, wide = query.shape[-1], value.shape[-1]
        with graph.inserting_before(node):
            operands = [
                self._scaled(self._shaped(found.query, (*lead, rows, inside)), found),
                self._key(found.key, (*lead, columns, inside)),
                self._shaped(found.value, (*lead, columns, wide)),
            ]
            summands = [self._summand(mask, found.shape, query.dtype) for mask in found.masks]
            while len(summands) > 1:
                pair = (summands.pop(0), summands.pop(0))
                summands.insert(0, graph.call_function(self._named("add", "Tensor"), pair))
            options: dict[str, Any] = {
                "attn_mask": summands[0] if summands else None,
                "scale": found.scale,
            }
            result = graph.call_function(self._attention(), tuple(operands), options)
            result = self._laid_out(result, (*lead, rows, wide))
        node.replace_all_uses_with(result)
        for dead in (node, *found.inner):
            for check in checks(dead):
                graph.erase_node(check)
            if not dead.users:
                graph.erase_node(dead)

    def _attention(self) -> Any:
        if isinstance(self._node.target, OpOverload):
            return torch.ops.aten.scaled_dot_product_attention.default
        return torch.nn.functional.scaled_dot_product_attention

    def _named(self, name: str, overload: str = "default") -> Any:
        return spelled_like(self._node, name, overload)

    def _scaled(self, query: Node, found: Attention) -> Node:
        for name, factor in found.factors:
            query = self._node.graph.call_function(self._named(name, "Tensor"), (query, factor))
        return query

    def _key(self, node: Node, shape: tuple[int, ...]) -> Node:
        """The key before its transpose, or transposed back."""
        above: Node | None = node
        while above is not None:
            source = transposed(above, self._known)
            if source is not None and not self._storage.written(source):
                return self._shaped(source, shape)
            above = view_source(above, self._known)
        back = self._shaped(node, (*shape[:-2], shape[-1], shape[-2]))
        return self._node.graph.call_function(self._named("transpose", "int"), (back, -2, -1))

    def _shaped(self, node: Node, shape: tuple[int, ...]) -> Node:
        """A value with other batch dimensions: the base of its view, or a view of it."""
        above: Node | None = node
        while above is not None and not self._storage.written(above):
            value = self._known.tensor(above)
            if value is not None and tuple(value.shape) == shape:
                return above
            above = view_source(above, self._known)
        value = self._known.tensor(node)
        assert value is not None
        graph = self._node.graph
        if value.numel() == torch.Size(shape).numel():
            return graph.call_function(self._named("reshape"), (node, list(shape)))
        if isinstance(self._node.target, OpOverload):
            return graph.call_function(torch.ops.aten.expand.default, (node, list(shape)))
        return graph.call_method("expand", (node, *shape))

    def _summand(self, mask: Mask, shape: tuple[int, ...], dtype: torch.dtype) -> Node:
        """A mask in additive form."""
        graph, node = self._node.graph, mask.node
        if mask.fill is not None:
            hidden = node
            if not mask.hides:
                hidden = graph.call_function(self._named("logical_not"), (node,))
            zeros = graph.call_function(self._named("zeros_like"), (node,), {"dtype": dtype})
            fill = self._named("masked_fill", "Scalar")
            node = graph.call_function(fill, (zeros, hidden, mask.fill))
        if mask.shape == shape:
            return node
        return self._regrouped(node, mask, shape)

    def _regrouped(self, node: Node, mask: Mask, shape: tuple[int, ...]) -> Node:
        """An additive mask with other batch dimensions, expanded first."""
        graph = self._node.graph
        if isinstance(self._node.target, OpOverload):
            node = graph.call_function(torch.ops.aten.expand.default, (node, list(mask.shape)))
        else:
            node = graph.call_method("expand", (node, *mask.shape))
        return graph.call_function(self._named("reshape"), (node, list(shape)))

    def _laid_out(self, result: Node, shape: tuple[int, ...]) -> Node:
        """The result with the sizes of the product, and its strides if a later view may need them.

        Fused kernels give results the layout of their operands.
        """
        node, graph = self._node, self._node.graph
        before = self._known.tensor(node)
        assert before is not None
        if tuple(before.shape) != shape:
            result = graph.call_function(self._named("reshape"), (result, list(before.shape)))
        if before.is_contiguous() and not all(map(_takes_any_strides, readers(node))):
            if isinstance(node.target, OpOverload):
                result = graph.call_function(torch.ops.aten.contiguous.default, (result,))
            else:
                result = graph.call_method("contiguous", (result,))
            result.meta = dict(node.meta)
        return result


def _takes_any_strides(user: Node) -> bool:
    """Whether a node's result has the same layout for any layout of its operand."""
    if operator_name(user) in {"transpose", "permute"}:
        return bool(readers(user)) and all(_copies(each) for each in readers(user))
    return _copies(user)


def _copies(user: Node) -> bool:
    name = operator_name(user)
    contiguous = name == "contiguous" and not user.kwargs and len(user.args) == 1
    return contiguous or (
        name == "clone" and user.kwargs.get("memory_format") is torch.contiguous_format
    )

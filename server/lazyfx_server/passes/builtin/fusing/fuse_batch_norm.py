"""Passes that fold batch normalization into the preceding layer."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lazyfx_server.passes.analysis.called_operators import KnownValues
from lazyfx_server.passes.analysis.evaluation import reviewed
from lazyfx_server.passes.analysis.storage import StorageMap
from lazyfx_server.passes.analysis.walk import attribute_at, unused_name
from lazyfx_server.passes.base import Pass, PassContext, PassResult
from lazyfx_server.passes.errors import PassError
from lazyfx_server.passes.patterns.convolutions import (
    Convolution,
    Normalization,
    convolution_of,
    has_lifted_statistics,
    linear_of,
    normalization_of,
)


@dataclass(frozen=True)
class FuseConvBn(Pass):
    """Folds batch normalization in evaluation mode into the preceding convolution.

    Works on module calls and on functional and aten graphs whose weights are
    attributes. The new weights are tensor attributes `_fused_weight_<i>` and
    `_fused_bias_<i>`; they cannot be trained. A convolution whose result is used elsewhere too, or
    whose normalization is in training mode, is left unchanged.
    """

    name: ClassVar[str] = "fuse_conv_bn"
    version: ClassVar[int] = 3
    needs_values: ClassVar[bool] = True

    def values_read(self, module: GraphModule) -> frozenset[str]:
        """Paths of the weights, biases and statistics of every pair."""
        return frozenset(path for pair in self._pairs(module) for path in pair.paths())

    def run(self, module: GraphModule, context: PassContext) -> PassResult:
        """Fuses the pairs of the root in place; nested GraphModules are left unchanged.

        Raises:
            PassError: The new weights have more than `max_folded_bytes` bytes (kind "limit").
        """
        pairs = list(self._pairs(module))
        ready = [pair for pair in pairs if pair.has_values(module)]
        if pairs and not ready:
            return PassResult(module, False, "skipped: values not available")
        size = sum(pair.bytes(module) for pair in ready)
        most = context.limits.bound("max_folded_bytes")
        if size > most.most:
            raise PassError(
                f"the fused weights would have {size} bytes; the limit is {most.most}{most}",
                kind="limit",
            )
        for pair in ready:
            _fuse(module, pair)
        if not ready:
            lifted = sum(map(has_lifted_statistics, module.graph.nodes))
            note = f"{lifted} normalizations skipped: their statistics are inputs" if lifted else ""
            return PassResult(module, False, note)
        _remove_unused_attributes(module)
        module.recompile()
        skipped = f", {len(pairs) - len(ready)} without values" if len(ready) < len(pairs) else ""
        return PassResult(module, True, f"{len(ready)} pairs fused{skipped}")

    def _pairs(self, module: GraphModule) -> Iterator[_Pair]:
        return _pairs(module, convolution_of)


@dataclass(frozen=True)
class FuseLinearBn(FuseConvBn):
    """Folds batch normalization in evaluation mode into the preceding linear layer.

    Like fuse_conv_bn for convolutions, with the same conditions. Only for two-dimensional values of
    known shape: with more dimensions, the normalization's channels are not the layer's outputs.
    """

    name: ClassVar[str] = "fuse_linear_bn"
    version: ClassVar[int] = 3
    needs_shapes: ClassVar[bool] = True

    def _pairs(self, module: GraphModule) -> Iterator[_Pair]:
        known = KnownValues(module)

        def linear(node: Node, owner: GraphModule) -> Convolution | None:
            value = known.tensor(node)
            flat = value is not None and value.ndim == 2
            return linear_of(node, owner) if flat else None

        return _pairs(module, linear)


@dataclass(frozen=True, slots=True)
class _Pair:
    convolution: Convolution
    normalization: Normalization

    def paths(self) -> list[str]:
        """Paths of every tensor that fusing reads."""
        return [*self.convolution.paths(), *self.normalization.paths()]

    def has_values(self, module: GraphModule) -> bool:
        tensors = [attribute_at(module, path) for path in self.paths()]
        return all(isinstance(t, torch.Tensor) and not t.is_meta for t in tensors)

    def bytes(self, module: GraphModule) -> int:
        weight = attribute_at(module, self.convolution.weight)
        assert isinstance(weight, torch.Tensor)
        return weight.numel() * weight.element_size()


def _pairs(
    module: GraphModule, layer_of: Callable[[Node, GraphModule], Convolution | None]
) -> Iterator[_Pair]:
    storage = StorageMap(module.graph, frozen=True)
    for node in module.graph.nodes:
        normalization = normalization_of(node, module)
        if normalization is None or len(normalization.input.users) != 1:
            continue
        convolution = layer_of(normalization.input, module)
        if convolution is None:
            continue
        pair = _Pair(convolution, normalization)
        read = (*convolution.node.all_input_nodes, *node.all_input_nodes)
        written = any(storage.written(n) for n in read if n.op == "get_attr") or any(
            map(storage.held_written, (convolution.node, node))
        )
        if not written and _fits(module, pair):
            yield pair


def _fits(module: GraphModule, pair: _Pair) -> bool:
    """Whether the tensors have the shapes and dtypes of one fusable layer."""
    convolution, normalization = pair.convolution, pair.normalization
    weight = attribute_at(module, convolution.weight)
    mean = attribute_at(module, normalization.mean)
    if not isinstance(weight, torch.Tensor) or not isinstance(mean, torch.Tensor):
        return False
    channels = weight.shape[1 if convolution.transposed else 0]
    if convolution.transposed and convolution.groups != 1:
        return False
    return weight.is_floating_point() and tuple(mean.shape) == (channels,)


def _fuse(module: GraphModule, pair: _Pair) -> None:
    convolution, normalization = pair.convolution, pair.normalization

    def tensor(path: str | None) -> Any:
        value = attribute_at(module, path) if path is not None else None
        return value.detach() if isinstance(value, torch.Tensor) else None

    with reviewed():
        fused = fuse_conv_bn_weights(
            tensor(convolution.weight),
            tensor(convolution.bias),
            tensor(normalization.mean),
            tensor(normalization.variance),
            normalization.epsilon,
            tensor(normalization.weight),
            tensor(normalization.bias),
            transpose=convolution.transposed,
        )
    node = convolution.node
    made = []
    for stem, value in zip(("_fused_weight_", "_fused_bias_"), fused, strict=True):
        name = unused_name(module, stem)
        setattr(module, name, value.detach().to(tensor(convolution.weight).dtype))
        with node.graph.inserting_before(node):
            made.append(node.graph.create_node("get_attr", name))
    replacement = convolution.with_weights(made[0], made[1])
    _take_place(normalization, replacement)
    if replacement is not node:
        node.graph.erase_node(node)


def _take_place(normalization: Normalization, replacement: Node) -> None:
    """Replaces the normalization's result by the convolution."""
    node = normalization.node
    results = [node]
    if normalization.gives_statistics:
        results = [user for user in node.users if user.target is operator.getitem]
    for result in results:
        replacement.meta = {**result.meta}
        result.replace_all_uses_with(replacement)
        node.graph.erase_node(result)
    if normalization.gives_statistics:
        node.graph.erase_node(node)


def _remove_unused_attributes(module: GraphModule) -> None:
    for node in reversed(module.graph.nodes):
        value = attribute_at(module, str(node.target)) if node.op == "get_attr" else None
        if isinstance(value, torch.Tensor) and not node.users:
            module.graph.erase_node(node)

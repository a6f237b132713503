"""Passes that quantize weights: int8, and with torchao int4 in groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from lazyfx.shared.native.setting_types import Words
from lazyfx_server.passes.analysis.effects import argument
from lazyfx_server.passes.analysis.evaluation import reviewed
from lazyfx_server.passes.analysis.storage import StorageMap
from lazyfx_server.passes.analysis.walk import attribute_at, unused_name
from lazyfx_server.passes.base import Pass, PassContext, PassResult
from lazyfx_server.passes.patterns.convolutions import Convolution, linear_of
from lazyfx_server.passes.torch_steps import torchao_names

_SCHEMES = ("int8", "torchao_int8", "torchao_int4")


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Stores the weights of linear layers as int8 and dequantizes them where they are used.

    Each output has its own scale (symmetric, no zero point), as in torchao's int8 weight-only
    scheme. The new attributes are `_int8_weight_<i>` and `_int8_scale_<i>`: a quarter of the memory
    and of the download. If torchao is installed on the server, its arithmetic is available:
    `torchao_int8`, or `torchao_int4`, with two values per byte, and a scale and a zero point per
    `group_size` values. For inference: quantized weights cannot be trained. Layers whose weight is
    an input of the graph, or has fewer than `min_elements` elements, are left unchanged.
    """

    name: ClassVar[str] = "quantize_weights"
    version: ClassVar[int] = 3
    needs_values: ClassVar[bool] = True
    tolerance: ClassVar[float] = 0.1

    min_elements: int = field(
        default=1024, metadata={"help": "Minimum number of elements of a weight to quantize."}
    )
    scheme: str = field(
        default="int8",
        metadata={"help": "int8, torchao_int8 or torchao_int4.", "takes": Words(tuple(_SCHEMES))},
    )
    group_size: int = field(
        default=32, metadata={"help": "torchao_int4 only: number of values that share a scale."}
    )

    def __post_init__(self) -> None:
        if self.scheme not in _SCHEMES:
            raise ValueError(f"scheme must be one of {', '.join(_SCHEMES)}")
        if self.group_size < 2 or self.group_size % 2:
            raise ValueError("group_size must be even and positive")
        if self._by_torchao and not torchao_names.is_installed():
            raise ValueError(
                f"scheme {self.scheme} needs torchao, which is not installed: "
                f"{torchao_names.REMEDY}"
            )

    @property
    def _by_torchao(self) -> bool:
        return self.scheme.startswith("torchao")

    def fingerprint(self) -> str:
        """The version of torchao if its arithmetic is used."""
        return torchao_names.torchao_version() if self._by_torchao else ""

    def values_read(self, module: GraphModule) -> frozenset[str]:
        """Paths of the weights that would be quantized."""
        return frozenset(layer.weight for layer in self._layers(module))

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Quantizes the layers of the root in place; nested GraphModules are left unchanged."""
        layers = list(self._layers(module))
        made: dict[str, _Quantized] = {}
        done = 0
        for layer in layers:
            weight = attribute_at(module, layer.weight)
            if not isinstance(weight, torch.Tensor) or weight.is_meta:
                continue
            if layer.weight not in made:
                made[layer.weight] = self._quantize(module, weight.detach())
            _use(module, layer, made[layer.weight])
            done += 1
        if not done:
            return PassResult(module, False, "skipped: values not available" if layers else "")
        for node in reversed(module.graph.nodes):
            if node.op == "get_attr" and not node.users and str(node.target) in made:
                module.graph.erase_node(node)
        module.recompile()
        bits = "int4" if self.scheme == "torchao_int4" else "int8"
        return PassResult(module, True, f"{done} layers, {len(made)} weights in {bits}")

    def _layers(self, module: GraphModule) -> Iterator[Convolution]:
        storage = StorageMap(module.graph, frozen=True)
        for node in module.graph.nodes:
            layer = linear_of(node, module)
            if layer is None:
                continue
            weight = attribute_at(module, layer.weight)
            if not isinstance(weight, torch.Tensor) or weight.dtype != torch.float32:
                continue
            operand = argument(node, 1, "weight")
            written = storage.held_written(node) or (
                isinstance(operand, Node) and storage.written(operand)
            )
            if weight.ndim == 2 and self._fits(weight) and not written:
                yield layer

    def _fits(self, weight: torch.Tensor) -> bool:
        in_groups = self.scheme != "torchao_int4" or weight.shape[1] % self.group_size == 0
        return weight.numel() >= self.min_elements and in_groups

    def _quantize(self, module: GraphModule, weight: torch.Tensor) -> _Quantized:
        if self.scheme == "torchao_int4":
            packed, scale, zero = torchao_names.quantize_int4(weight, self.group_size)
            return _Quantized(
                tuple(weight.shape),
                _keep(module, "_int4_weight_", packed),
                _keep(module, "_int4_scale_", scale),
                _keep(module, "_int4_zero_", zero),
                self.group_size,
            )
        if self.scheme == "torchao_int8":
            values, scale = torchao_names.quantize_int8(weight)
        else:
            with reviewed():
                scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
                values = (weight / scale).round().clamp(-127, 127).to(torch.int8)
        return _Quantized(
            tuple(weight.shape),
            _keep(module, "_int8_weight_", values),
            _keep(module, "_int8_scale_", scale),
        )


@dataclass(frozen=True, slots=True)
class _Quantized:
    """Paths of a weight's parts: int8 and scale, or packed int4, scale and zero point."""

    shape: tuple[int, ...]
    values: str
    scale: str
    zero: str | None = None
    group: int = 0


def _keep(module: GraphModule, stem: str, value: torch.Tensor) -> str:
    name = unused_name(module, stem)
    setattr(module, name, value.contiguous())
    return name


def _use(module: GraphModule, layer: Convolution, quantized: _Quantized) -> None:
    graph, node = module.graph, layer.node
    with graph.inserting_before(node):
        weight = _dequantized(node, quantized)
        bias = None if layer.bias is None else graph.create_node("get_attr", layer.bias)
    if layer.module is None:
        given = argument(node, 2, "bias")
        if bias is not None and isinstance(given, Node):
            graph.erase_node(bias)
        operand = argument(node, 1, "weight")
        assert isinstance(operand, Node)
        node.replace_input_with(operand, weight)
        return
    with graph.inserting_before(node):
        linear = graph.call_function(
            torch.nn.functional.linear, (argument(node, 0, "input"), weight, bias)
        )
    linear.meta = dict(node.meta)
    node.replace_all_uses_with(linear)
    graph.erase_node(node)


def _dequantized(near: Node, quantized: _Quantized) -> Node:
    """The weight in float32, computed at a node, in the style of its graph."""
    graph, aten = near.graph, isinstance(near.target, OpOverload)
    call: Any = graph.call_function
    ops = torch.ops.aten

    def spelled(name: str, overload: str) -> Any:
        return getattr(getattr(ops, name), overload) if aten else getattr(torch, name)

    def wide(value: Node) -> Node:
        if aten:
            found: Node = call(ops._to_copy.default, (value,), {"dtype": torch.float32})  # noqa: SLF001 - core aten's cast
            return found
        return graph.call_method("to", (value, torch.float32))

    values, scale = (graph.create_node("get_attr", p) for p in (quantized.values, quantized.scale))
    if quantized.zero is None:
        product: Node = call(spelled("mul", "Tensor"), (wide(values), scale))
        return product
    zero = graph.create_node("get_attr", quantized.zero)
    rows, columns = quantized.shape
    low = call(spelled("bitwise_and", "Scalar"), (values, 15))
    high = call(spelled("bitwise_right_shift", "Tensor_Scalar"), (values, 4))
    both = call(spelled("stack", "default"), ([low, high], -1))
    reshape = spelled("reshape", "default")
    grouped = call(reshape, (both, [rows, columns // quantized.group, quantized.group]))
    shifted = call(spelled("sub", "Tensor"), (wide(grouped), zero))
    product = call(spelled("mul", "Tensor"), (shifted, scale))
    result: Node = call(reshape, (product, [rows, columns]))
    return result

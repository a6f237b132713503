"""Passes that change precision: matrix work in bfloat16, weights in int8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from lazyfx_server.passes.base import Pass, PassContext, PassResult
from lazyfx_server.passes.calls import KnownValues, in_each, operator_name
from lazyfx_server.passes.convolutions import Convolution, linear_of
from lazyfx_server.passes.effects import argument
from lazyfx_server.passes.operators import words
from lazyfx_server.passes.storage import StorageMap
from lazyfx_server.passes.walk import attribute_at, unused_name

_MATRIX_WORK = words(
    "mm bmm matmul linear addmm baddbmm conv1d conv2d conv3d convolution "
    "scaled_dot_product_attention"
)
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ConvertDtype(Pass):
    """Does the matrix work of a float32 graph in bfloat16 or float16.

    Operands of matrix products, linear layers, convolutions and attention are cast, and their
    results are cast back, so that everything else, the parameters and the interface stay in
    float32. Gradients flow through the casts. Results differ by the precision of the type.
    """

    name: ClassVar[str] = "convert_dtype"
    needs_shapes: ClassVar[bool] = True
    tolerance: ClassVar[float] = 0.1

    dtype: str = field(default="bfloat16", metadata={"help": '"bfloat16" or "float16".'})

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype takes one of {', '.join(sorted(_DTYPES))}")

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Inserts the casts, in the GraphModules inside too."""

        def convert(part: GraphModule, known: KnownValues) -> int:
            return _convert(part, known, _DTYPES[self.dtype])

        return in_each(module, convert, "{} calls converted")


def _convert(module: GraphModule, known: KnownValues, dtype: torch.dtype) -> int:
    converted = 0
    storage = StorageMap(module.graph)
    for node in list(module.graph.nodes):
        if not _converts(node, known, storage):
            continue
        for operand in node.all_input_nodes:
            value = known.tensor(operand)
            if value is not None and value.dtype == torch.float32:
                with module.graph.inserting_before(node):
                    cast = _cast(node, operand, dtype)
                node.replace_input_with(operand, cast)
        metadata = dict(node.meta)
        node.meta = {}
        with module.graph.inserting_after(node):
            back = _cast(node, node, torch.float32)
        back.meta = metadata
        node.replace_all_uses_with(back, delete_user_cb=lambda user, b=back: user is not b)
        converted += 1
    return converted


def _converts(node: Node, known: KnownValues, storage: StorageMap) -> bool:
    value = known.tensor(node)
    if operator_name(node) not in _MATRIX_WORK or value is None or "out" in node.kwargs:
        return False
    operands = [known.tensor(operand) for operand in node.all_input_nodes]
    tensors = [t for t in operands if t is not None]
    return (
        value.dtype == torch.float32
        and storage.effects[node].pure
        and len(tensors) == len(operands)
        and all(t.dtype in (torch.float32, torch.bool) for t in tensors)
    )


def _cast(near: Node, operand: Node, dtype: torch.dtype) -> Node:
    if isinstance(near.target, OpOverload):
        target: Any = torch.ops.aten._to_copy.default  # noqa: SLF001 - core aten's cast
        return near.graph.call_function(target, (operand,), {"dtype": dtype})
    return near.graph.call_method("to", (operand, dtype))


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Keeps the weights of linear layers in int8 and multiplies them out when they are used.

    Each output has a scale of its own (symmetric, no zero point), as torchao's int8 weight-only
    scheme has. The new attributes are `_int8_weight_<i>` and `_int8_scale_<i>`: a quarter of the
    memory and of the download. For inference: quantized weights cannot be trained. Layers whose
    weight is an input of the graph, or has fewer than `min_elements`, stay.
    """

    name: ClassVar[str] = "quantize_weights"
    needs_values: ClassVar[bool] = True
    tolerance: ClassVar[float] = 0.1

    min_elements: int = field(
        default=1024, metadata={"help": "Leave weights with fewer elements as they are."}
    )

    def values_read(self, module: GraphModule) -> frozenset[str]:
        """Paths of the weights that would be quantized."""
        return frozenset(layer.weight for layer in self._layers(module))

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Quantizes the layers of the root in place; GraphModules inside stay as they are."""
        layers = list(self._layers(module))
        made: dict[str, tuple[str, str]] = {}
        done = 0
        for layer in layers:
            weight = attribute_at(module, layer.weight)
            if not isinstance(weight, torch.Tensor) or weight.is_meta:
                continue
            if layer.weight not in made:
                made[layer.weight] = _quantize(module, weight.detach())
            _use(module, layer, *made[layer.weight])
            done += 1
        if not done:
            return PassResult(module, False, "skipped: values not given" if layers else "")
        for node in reversed(module.graph.nodes):
            if node.op == "get_attr" and not node.users and str(node.target) in made:
                module.graph.erase_node(node)
        module.recompile()
        return PassResult(module, True, f"{done} layers, {len(made)} weights in int8")

    def _layers(self, module: GraphModule) -> Iterator[Convolution]:
        storage = StorageMap(module.graph)
        for node in module.graph.nodes:
            layer = linear_of(node, module)
            if layer is None:
                continue
            weight = attribute_at(module, layer.weight)
            if not isinstance(weight, torch.Tensor) or weight.dtype != torch.float32:
                continue
            operand = argument(node, 1, "weight")
            written = isinstance(operand, Node) and storage.written(operand)
            if weight.ndim == 2 and weight.numel() >= self.min_elements and not written:
                yield layer


def _quantize(module: GraphModule, weight: torch.Tensor) -> tuple[str, str]:
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
    names = unused_name(module, "_int8_weight_"), unused_name(module, "_int8_scale_")
    setattr(module, names[0], (weight / scale).round().clamp(-127, 127).to(torch.int8))
    setattr(module, names[1], scale)
    return names


def _use(module: GraphModule, layer: Convolution, weight_path: str, scale_path: str) -> None:
    graph, node = module.graph, layer.node
    aten = isinstance(node.target, OpOverload)
    cast: Any = torch.ops.aten._to_copy.default if aten else torch.Tensor.to  # noqa: SLF001
    multiply: Any = torch.ops.aten.mul.Tensor if aten else torch.mul
    with graph.inserting_before(node):
        packed, scale = (graph.create_node("get_attr", path) for path in (weight_path, scale_path))
        if aten:
            wide = graph.call_function(cast, (packed,), {"dtype": torch.float32})
        else:
            wide = graph.call_method("to", (packed, torch.float32))
        weight = graph.call_function(multiply, (wide, scale))
        bias = None if layer.bias is None else graph.create_node("get_attr", layer.bias)
    if layer.module is None:
        given = argument(node, 2, "bias")
        if bias is not None and isinstance(given, Node):
            graph.erase_node(bias)
            bias = given
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

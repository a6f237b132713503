"""Passes that change precision: matrix operations in bfloat16 or float16."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from lazyfx.shared.native.setting_types import Words
from lazyfx_server.passes.analysis.called_operators import (
    KnownValues,
    apply_to_each_graph,
    operator_name,
    set_dtype,
)
from lazyfx_server.passes.analysis.operator_facts import words
from lazyfx_server.passes.analysis.storage import StorageMap
from lazyfx_server.passes.base import Pass, PassContext, PassResult

_MATRIX_WORK = words(
    "mm bmm matmul linear addmm baddbmm conv1d conv2d conv3d convolution "
    "scaled_dot_product_attention"
)
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ConvertDtype(Pass):
    """Runs the matrix operations of a float32 graph in bfloat16 or float16.

    Operands of matrix products, linear layers, convolutions and attention are cast, and their
    results are cast back, so that everything else, the parameters and the interface stay in
    float32. Gradients flow through the casts. Results differ by the precision of the type.
    """

    name: ClassVar[str] = "convert_dtype"
    version: ClassVar[int] = 3
    needs_shapes: ClassVar[bool] = True
    tolerance: ClassVar[float] = 0.1

    dtype: str = field(
        default="bfloat16",
        metadata={"help": '"bfloat16" or "float16".', "takes": Words(tuple(_DTYPES))},
    )

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(sorted(_DTYPES))}")

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Inserts the casts, including in nested GraphModules."""

        def convert(part: GraphModule, known: KnownValues) -> int:
            return _convert(part, known, _DTYPES[self.dtype])

        return apply_to_each_graph(module, convert, "{} calls converted")


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
                set_dtype(cast, value, dtype)
                node.replace_input_with(operand, cast)
        metadata = dict(node.meta)
        result = known.tensor(node)
        assert result is not None
        set_dtype(node, result, dtype)
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

"""Whether a graph may write to tensors that it reads: judged conservatively, by names."""

# ruff: noqa: SLF001 - operators have no public class

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from lazyfx.shared.wire.values.tensors import storage_key

# Functions that write to operands without indicating it in their names.
_WRITING = frozenset(
    {
        "batch_norm", "cudnn_batch_norm", "embedding", "embedding_bag",
        "fused_moving_avg_obs_fake_quant", "instance_norm", "miopen_batch_norm",
        "native_batch_norm", "setitem",
    }
)  # fmt: skip


def may_write(module: GraphModule) -> bool:
    """Whether a graph, or a nested one, has a call that could write to an operand."""
    return any(
        _may_write(part, node)
        for part in module.modules()
        if isinstance(part, GraphModule)
        for node in part.graph.nodes
    )


def share_memory(some: Iterable[torch.Tensor], others: Iterable[torch.Tensor]) -> bool:
    """Whether any tensor of one group shares memory with any of the other."""
    known = {storage_key(tensor) for tensor in some if not tensor.is_meta}
    return any(storage_key(tensor) in known for tensor in others if not tensor.is_meta)


def _may_write(module: GraphModule, node: Node) -> bool:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return bool(target._schema.is_mutable)
    if node.op == "call_module":
        called = module.get_submodule(target)
        return any(True for _ in called.buffers()) or any(
            getattr(called, name, None) for name in ("inplace", "max_norm")
        )
    if node.op not in ("call_function", "call_method"):
        return False
    if "out" in node.kwargs or node.kwargs.get("inplace"):
        return True
    name = target if isinstance(target, str) else str(getattr(target, "__name__", target))
    in_place = getattr(target, "__module__", "") == "_operator" and name.startswith("i")
    named = name.endswith("_") and not name.endswith("__")
    return in_place or named or name.strip("_") in _WRITING

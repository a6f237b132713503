"""Which attributes of a module share memory: views of one buffer, tied tensors, a part of another.

In a job, tensors are stand-ins or bound values, and every one has memory of its own; which of them
share memory in the caller's process is known from their storage numbers on the wire.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import torch
from torch import nn
from torch.fx import GraphModule

from lazyfx.shared.wire.values.tensors import StandIn, storage_key
from lazyfx.v1 import graph_pb2


def remember_storage(
    tensor: torch.Tensor, number: int, description: graph_pb2.TensorDescription | None = None
) -> None:
    """Notes the storage number that a bound value has on the wire, and its place in the storage."""
    tensor.lazyfx_storage = number  # type: ignore[attr-defined]
    tensor.lazyfx_description = description  # type: ignore[attr-defined]


def description_of(tensor: torch.Tensor) -> graph_pb2.TensorDescription | None:
    """Sizes, strides and offset that an attribute has in the caller's process, if known."""
    stand_in = getattr(tensor, "lazyfx_stand_in", None)
    if isinstance(stand_in, StandIn):
        row: graph_pb2.TensorDescription = stand_in.tables.body.tensors[stand_in.attribute.tensor]
        return row
    found = getattr(tensor, "lazyfx_description", None)
    return found if isinstance(found, graph_pb2.TensorDescription) else None


def memory_of(tensor: torch.Tensor) -> Hashable:
    """A key that tensors have in common if they share memory in the caller's process."""
    number = getattr(tensor, "lazyfx_storage", None)
    stand_in = getattr(tensor, "lazyfx_stand_in", None)
    if number is None and isinstance(stand_in, StandIn):
        number = stand_in.attribute.storage
    return ("own", storage_key(tensor)) if number is None else ("sent", number)


def memories_in(value: object) -> Iterator[Hashable]:
    """The memory of a tensor, or of every tensor in a module, including plain attributes."""
    if isinstance(value, torch.Tensor):
        yield memory_of(value)
    elif isinstance(value, nn.Module):
        for part in value.modules():
            own = (*part.parameters(recurse=False), *part.buffers(recurse=False))
            plain = (v for v in vars(part).values() if isinstance(v, torch.Tensor))
            for tensor in (*own, *plain):
                yield memory_of(tensor)


def holds_graph(module: nn.Module) -> bool:
    """Whether a module is or contains a graph, which may return its attributes."""
    return any(isinstance(part, GraphModule) for part in module.modules())

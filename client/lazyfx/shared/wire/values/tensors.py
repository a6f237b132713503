"""Tensor contents: bytes, digests, and stand-ins for absent tensors."""

# ruff: noqa: SLF001 - what is fake, and what shares memory, has no public spelling

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lazyfx.errors import DecodeError, UnsupportedGraphError
from lazyfx.shared.wire.format import DTYPE_OBJECTS, MAX_INT64
from lazyfx.v1 import graph_pb2 as pb


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous tensor of `shape`."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The elements of a tensor, row-major and little-endian, without padding.

    Raises:
        UnsupportedGraphError: The tensor has no plain values (fake, meta, sparse, nested).
    """
    if (
        isinstance(tensor, torch._subclasses.FakeTensor)
        or tensor.layout is not torch.strided
        or tensor.is_meta
        or tensor.is_quantized
    ):
        raise UnsupportedGraphError(
            "a constant without plain values cannot be sent",
            remedy="keep real, dense constants in the graph",
        )
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # A single element is contiguous with any stride, but viewing as bytes requires stride 1.
    dense = dense.as_strided((dense.numel(),), (1,))
    return memoryview(dense.view(torch.uint8).numpy())  # type: ignore[arg-type]


def content_digest(tensor: torch.Tensor) -> pb.Digest:
    """SHA-256 and size of `tensor_bytes(tensor)`."""
    data = tensor_bytes(tensor)
    return pb.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=data.nbytes)


def tensor_from_bytes(
    description: pb.TensorDescription, data: bytes | bytearray | memoryview
) -> torch.Tensor:
    """A CPU tensor with the described dtype, shape and strides that contains `data`.

    Args:
        description: A description with a static shape; without strides, it is contiguous.
        data: Elements from `tensor_bytes`.

    Raises:
        DecodeError: The dtype is unknown, the shape is symbolic, or the size is wrong.
    """
    dtype = DTYPE_OBJECTS.get(description.dtype)
    shape = tuple(description.shape)
    if dtype is None or description.symbolic_shape or min(shape, default=0) < 0:
        raise DecodeError("a tensor with values needs a known dtype and a static shape")
    count = 1
    for size in shape:
        count *= size
    if count * dtype.itemsize != memoryview(data).nbytes:
        raise DecodeError(
            f"{memoryview(data).nbytes} bytes for a tensor of {count * dtype.itemsize} bytes"
        )
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.bool and max(memoryview(data).cast("B")) > 1:
        raise DecodeError("a boolean that is neither 0 nor 1")
    # The copy owns its memory: the message may be read-only and short-lived.
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(shape)
    strides = tuple(description.stride)
    if not strides or not _dense(shape, strides):
        return flat
    return torch.empty_strided(shape, strides, dtype=dtype).copy_(flat)


def _dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether strides address each element exactly once without gaps, so that memory is bounded."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


@dataclass(frozen=True, eq=False)
class StandIn:
    """The attribute of the decoded graph that a meta tensor represents.

    It is an attribute of the tensor (`tensor.lazyfx_stand_in`), so that encoding a compiled graph
    again describes the caller's tensor instead of the meta tensor. Copies share it; in a pickle it
    becomes None, so that pickles load without lazyfx.
    """

    tables: Any
    attribute: pb.TensorAttribute

    def __deepcopy__(self, memo: dict[int, Any]) -> StandIn:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(None), ())


def stand_in_of(tensor: torch.Tensor) -> StandIn | None:
    """The attribute that a meta tensor represents, if any."""
    found = getattr(tensor, "lazyfx_stand_in", None) if tensor.is_meta else None
    return found if isinstance(found, StandIn) else None


def storage_key(tensor: torch.Tensor) -> int:
    """A number that is equal for tensors if and only if they share memory."""
    if tensor.layout is not torch.strided:
        return id(tensor)
    return int(tensor.untyped_storage()._cdata)


def storage_extent(shape: Sequence[int], strides: Sequence[int], offset: int) -> int:
    """The minimum number of elements of a storage for such a tensor."""
    if 0 in shape:
        return offset
    extent = offset + 1
    for size, stride in zip(shape, strides, strict=True):
        extent += (size - 1) * stride
    if not 0 <= extent <= MAX_INT64:
        raise DecodeError("the tensor's extent does not fit into 64 bits", field="tensors")
    return extent

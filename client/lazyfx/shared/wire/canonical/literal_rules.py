"""Checks what a row says by itself, whatever message it is in.

Rows of this kind come again and again, in every graph of a model and in every pattern:
that one was found right is remembered by its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.format import (
    DTYPE_OBJECTS,
    LAYOUT_OBJECTS,
    MAX_DIMENSIONS,
)
from lazyfx.v1 import graph_pb2 as pb

# Rows remembered, and the longest of them: some 2 MB in all.
MAX_ROWS = 4096
LONGEST_ROW = 256
_WITH_GRADIENTS = frozenset(
    number
    for name, number in pb.Dtype.items()
    if name.startswith(("DTYPE_FLOAT", "DTYPE_BFLOAT", "DTYPE_COMPLEX"))
)


class TensorIndices(NamedTuple):
    """What a tensor description refers to."""

    device: int
    expressions: tuple[int, ...]


@lru_cache(maxsize=MAX_ROWS)
def known_tensor(serialized: bytes) -> TensorIndices | None:
    """What a serialized row refers to; None where something is wrong with it."""
    try:
        return read_tensor(pb.TensorDescription.FromString(serialized), "")
    except DecodeError:
        return None


def read_tensor(row: pb.TensorDescription, field: str) -> TensorIndices:
    """Check a tensor description and say what it refers to."""
    check_tensor(row, field)
    offset = row.symbolic_storage_offset
    expressions = *row.symbolic_shape, *row.symbolic_stride, *((offset - 1,) if offset else ())
    return TensorIndices(row.device, expressions)


def check_tensor(row: pb.TensorDescription, field: str) -> None:
    """Check a tensor description, its indices left out."""
    if not row.dtype or row.layout == pb.LAYOUT_STRIDED:
        raise DecodeError("no dtype, or an explicit strided layout", field=field)
    if row.dtype not in DTYPE_OBJECTS:
        raise DecodeError(f"this torch has no dtype number {row.dtype}", field=f"{field}.dtype")
    if row.layout and row.layout not in LAYOUT_OBJECTS:
        raise DecodeError(f"this torch has no layout number {row.layout}", field=f"{field}.layout")
    if row.requires_grad and row.dtype not in _WITH_GRADIENTS:
        raise DecodeError("requires_grad on a dtype without gradients", field=field)
    if row.symbolic_shape:
        if row.shape or row.stride or row.storage_offset:
            raise DecodeError("both static and symbolic sizes", field=field)
        if row.symbolic_stride and len(row.symbolic_stride) != len(row.symbolic_shape):
            raise DecodeError("must have one stride per dimension", field=field)
    # Of a number out of a tensor of symbolic size only the place in memory is symbolic.
    elif row.symbolic_stride or (
        row.symbolic_storage_offset and (row.shape or row.stride or row.storage_offset)
    ):
        raise DecodeError("symbolic strides of static sizes", field=field)
    else:
        _check_static(row, field)
    if max(len(row.shape), len(row.symbolic_shape)) > MAX_DIMENSIONS:
        raise DecodeError(f"more than {MAX_DIMENSIONS} dimensions", field=field)


def _check_static(row: pb.TensorDescription, field: str) -> None:
    shape: Sequence[int] = row.shape
    stride: Sequence[int] = row.stride
    if any(size < 0 for size in shape) or row.storage_offset < 0:
        raise DecodeError("a negative size", field=field)
    if any(step < 0 for step in stride):
        raise DecodeError("a negative stride", field=field)
    if not stride:
        return
    if len(stride) != len(shape):
        raise DecodeError("must have one stride per dimension", field=field)
    expected, contiguous = 1, True
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        contiguous = contiguous and step == expected
        expected *= max(size, 1)
    if contiguous:
        raise DecodeError("explicit strides of a contiguous tensor", field=field)


def check_tensor_attribute(
    row: pb.TensorAttribute, description: pb.TensorDescription, field: str
) -> None:
    """Check that the role of a tensor, its digest and its description fit each other."""
    if not 1 <= row.role <= 3:
        raise DecodeError("a tensor without a role", field=f"{field}.role")
    if row.HasField("content") != (row.role == pb.TENSOR_ROLE_CONSTANT) or (
        row.HasField("content") and len(row.content.sha256) != 32
    ):
        raise DecodeError(
            "constants must have a digest, and other tensors must not", field=f"{field}.content"
        )
    if description.symbolic_shape or description.symbolic_storage_offset:
        raise DecodeError("an attribute must not have a symbolic size", field=f"{field}.tensor")
    if description.is_parameter != (row.role == pb.TENSOR_ROLE_PARAMETER):
        raise DecodeError("the role does not fit the description", field=f"{field}.role")


def check_target(row: pb.Call, field: str) -> None:
    """Check that a call has a target if its opcode takes one."""
    named = row.opcode in (pb.OPCODE_CALL_FUNCTION, pb.OPCODE_CALL_METHOD)
    if bool(row.target) != named:
        reason = "no target" if named else "a target where none is allowed"
        raise DecodeError(reason, field=f"{field}.target")


def check_shape(row: pb.Call, field: str) -> None:
    """Check that a call has the parts that its opcode takes."""
    if row.opcode == pb.OPCODE_OUTPUT and (len(row.args) != 1 or row.kwargs):
        raise DecodeError("an output must have exactly one argument", field=f"{field}.args")
    if row.opcode == pb.OPCODE_GET_ATTR and (row.args or row.kwargs):
        raise DecodeError("arguments where none are allowed", field=f"{field}.args")
    if row.opcode == pb.OPCODE_PLACEHOLDER and (len(row.args) > 1 or row.kwargs):
        raise DecodeError("a placeholder takes at most a default", field=f"{field}.args")
    if row.stars and (row.opcode != pb.OPCODE_PLACEHOLDER or row.stars > 2):
        raise DecodeError("stars where none are allowed", field=f"{field}.stars")
    if not 1 <= row.opcode <= 6:
        raise DecodeError(f"unknown opcode {row.opcode}", field=f"{field}.opcode")

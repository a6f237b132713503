"""Constants of the format: bounds, and the enums as torch objects."""

from __future__ import annotations

import re
from typing import Final

import torch

from lazyfx.v1 import graph_pb2 as pb

# Maximum nesting of containers, values, expressions and tree specs, in both directions. Protobuf
# parsers stop at 100 nested messages; a dictionary level takes three.
MAX_DEPTH: Final = 30
# Maximum nodes of a symbolic expression as a tree, and bits of its numbers.
MAX_EXPRESSION_TREE: Final = 1024
MAX_EXPRESSION_BITS: Final = 1 << 20
# Maximum dimensions of a tensor (torch itself stops at 64).
MAX_DIMENSIONS: Final = 64

MIN_INT64: Final = -(2**63)
MAX_INT64: Final = 2**63 - 1
QUIET_NAN_BITS: Final = 0x7FF8000000000000

OPCODES: Final[dict[str, pb.Opcode.ValueType]] = {
    "placeholder": pb.OPCODE_PLACEHOLDER,
    "get_attr": pb.OPCODE_GET_ATTR,
    "call_function": pb.OPCODE_CALL_FUNCTION,
    "call_method": pb.OPCODE_CALL_METHOD,
    "call_module": pb.OPCODE_CALL_MODULE,
    "output": pb.OPCODE_OUTPUT,
}
OPCODE_NAMES: Final[dict[int, str]] = {number: name for name, number in OPCODES.items()}


def _dtypes() -> dict[torch.dtype, pb.Dtype.ValueType]:
    """Enum numbers of the dtypes in this torch: DTYPE_FLOAT32 is torch.float32."""
    numbers = {}
    for name, number in pb.Dtype.items():
        dtype = getattr(torch, name.removeprefix("DTYPE_").lower(), None)
        if isinstance(dtype, torch.dtype):
            numbers[dtype] = number
    return numbers


DTYPES: Final = _dtypes()
DTYPE_OBJECTS: Final[dict[int, torch.dtype]] = {n: d for d, n in DTYPES.items()}

LAYOUTS: Final[dict[torch.layout, pb.Layout.ValueType]] = {
    torch.strided: pb.LAYOUT_STRIDED,
    torch.sparse_coo: pb.LAYOUT_SPARSE_COO,
    torch.sparse_csr: pb.LAYOUT_SPARSE_CSR,
    torch.sparse_csc: pb.LAYOUT_SPARSE_CSC,
    torch.sparse_bsr: pb.LAYOUT_SPARSE_BSR,
    torch.sparse_bsc: pb.LAYOUT_SPARSE_BSC,
    torch.jagged: pb.LAYOUT_JAGGED,
}
LAYOUT_OBJECTS: Final[dict[int, torch.layout]] = {n: v for v, n in LAYOUTS.items()}

MEMORY_FORMATS: Final[dict[torch.memory_format, pb.MemoryFormat.ValueType]] = {
    torch.contiguous_format: pb.MEMORY_FORMAT_CONTIGUOUS,
    torch.channels_last: pb.MEMORY_FORMAT_CHANNELS_LAST,
    torch.channels_last_3d: pb.MEMORY_FORMAT_CHANNELS_LAST_3D,
    torch.preserve_format: pb.MEMORY_FORMAT_PRESERVE,
}

DEVICE_TYPES: Final[dict[str, pb.DeviceType.ValueType]] = {
    "cpu": pb.DEVICE_TYPE_CPU,
    "cuda": pb.DEVICE_TYPE_CUDA,
    "meta": pb.DEVICE_TYPE_META,
    "xpu": pb.DEVICE_TYPE_XPU,
    "mps": pb.DEVICE_TYPE_MPS,
}
DEVICE_TYPE_NAMES: Final[dict[int, str]] = {n: t for t, n in DEVICE_TYPES.items()}

# A string that names one of several devices; which one is up to the caller. It counts as a device
# where torch parses it: in calls of operators, functions of torch and Tensor methods.
DEVICE_TEXT: Final = re.compile(
    r"(cpu|cuda|meta|mps|xpu):(0|[1-9][0-9]?|1[01][0-9]|12[0-7])\Z", re.ASCII
)

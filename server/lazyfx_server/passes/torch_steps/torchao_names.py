"""torchao's quantization: its names in one place. An optional extra; check `is_installed` first.

Only torchao's arithmetic is used (`quant_primitives`, the same in 0.9 to 0.18), so the results are
plain tensors, and graphs that run without torchao.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

import torch

REMEDY = "pip install 'lazyfx[torchao]' where the server runs, or use the scheme int8"


def is_installed() -> bool:
    """Whether torchao can be imported; does not import it."""
    return find_spec("torchao") is not None


def torchao_version() -> str:
    """The installed version of torchao."""
    return version("torchao")


def quantize_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The arithmetic of Int8WeightOnlyConfig: symmetric, one scale per row.

    Returns:
        int8 of the weight's shape (rows, columns), and scales (rows, 1).
    """
    primitives = import_module("torchao.quantization.quant_primitives")
    block = (1, weight.shape[1])
    scale, zero = primitives.choose_qparams_affine(
        weight, primitives.MappingType.SYMMETRIC, block, torch.int8, eps=1e-6
    )
    values = primitives.quantize_affine(weight, block, scale, zero, torch.int8)
    return values, scale.reshape(-1, 1).to(weight.dtype)


def quantize_int4(
    weight: torch.Tensor, group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values from 0 to 15 with a scale and a zero point per group of a row.

    Args:
        weight: (rows, columns); `group` divides the columns.
        group: Values that share a scale.

    Returns:
        uint8 (rows, columns / 2), two values per byte, the first in the low half; scales and zero
        points (rows, columns / group, 1).
    """
    primitives = import_module("torchao.quantization.quant_primitives")
    limits = {"quant_min": 0, "quant_max": 15}
    scale, zero = primitives.choose_qparams_affine(
        weight, primitives.MappingType.ASYMMETRIC, (1, group), torch.int8, eps=1e-6, **limits
    )
    values = primitives.quantize_affine(weight, (1, group), scale, zero, torch.int8, **limits)
    halves = values.to(torch.uint8)
    packed = halves[:, 0::2] | (halves[:, 1::2] << 4)
    shape = (weight.shape[0], -1, 1)
    return packed, scale.to(weight.dtype).reshape(shape), zero.to(weight.dtype).reshape(shape)

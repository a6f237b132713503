"""Fake tensors made directly, without torch's dispatch: the same tensors in a tenth of the time.

torch makes the results that its own cache of fake calls finds in the same way
(`FakeTensorMode._get_output_tensor_from_cache_entry`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager


def is_plain(value: object, mode: FakeTensorMode) -> bool:
    """Whether a value is a strided fake tensor of a mode, with known sizes and nothing special."""
    return (
        type(value) is FakeTensor
        and value.fake_mode is mode
        and value.layout is torch.strided
        and value.constant is None
        and not value.is_conj()
        and not value.is_neg()
        and not value.is_quantized
        and all(type(n) is int for n in (*value.shape, *value.stride()))
        and type(value.storage_offset()) is int
    )


class Facts(NamedTuple):
    """What is known of a plain tensor that fills its memory, as it is now: writes may change it."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool


def facts_of(value: FakeTensor) -> Facts:
    """What is known of a plain tensor that fills its memory."""
    shape = tuple(value.shape)
    return Facts(shape, value.stride(), value.dtype, value.device, value.requires_grad)


def fresh(facts: Facts, mode: FakeTensorMode) -> FakeTensor:
    """A tensor in memory of its own; a computed one, for autograd, if it requires grad."""
    shape, stride, dtype, device, requires_grad = facts
    with in_kernel_invocation_manager(mode):
        empty = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        made = FakeTensor(mode, empty, device)
        if requires_grad:
            # Something was written to it that requires grad, as to any result.
            made.copy_(torch.empty((), dtype=dtype, device="meta", requires_grad=True))
    return made


def same_memory(value: FakeTensor) -> FakeTensor:
    """What `detach` returns for a plain tensor: another tensor with the same memory."""
    mode, device = value.fake_mode, value.device
    with in_kernel_invocation_manager(mode):
        shared = value.detach()
    return FakeTensor(mode, shared, device)

"""Fake tensors made directly, without torch's dispatch: the same tensors in a tenth of the time.

torch makes the results that its own cache of fake calls finds in the same way
(`FakeTensorMode._get_output_tensor_from_cache_entry`).
"""

from __future__ import annotations

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


def fresh_like(value: FakeTensor) -> FakeTensor:
    """A tensor like a plain one, in memory of its own; computed, for autograd, if that one was."""
    mode, device = value.fake_mode, value.device
    with in_kernel_invocation_manager(mode):
        empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        made = FakeTensor(mode, empty, device)
        if value.requires_grad:
            # Something was written to it that requires grad, as to any result.
            made.copy_(torch.empty((), dtype=value.dtype, device="meta", requires_grad=True))
    return made


def same_memory(value: FakeTensor) -> FakeTensor:
    """What `detach` returns for a plain tensor: another tensor with the same memory."""
    mode, device = value.fake_mode, value.device
    with in_kernel_invocation_manager(mode):
        shared = value.detach()
    return FakeTensor(mode, shared, device)

"""Creates fake tensors like torch's constructor, in a quarter of its time.

The constructor handles many kinds of arguments and sets two dozen attributes, most of them through
descriptors. Fake tensors of one mode and device differ only in their meta tensor, so the attributes
of an existing one are copied. Whether that creates an equal tensor in this torch is tested once; if
not, the constructor is used.
"""

# ruff: noqa: SLF001 - this is the one file that leans on how a fake tensor is made

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_subclass: Any = torch.Tensor._make_subclass
# A mode either forbids access to its tensors' data pointers or only warns.
_forbid_data: Any = getattr(torch._C, "_set_throw_on_mutable_data_ptr", None)
_warn_of_data: Any = getattr(torch._C, "_set_warn_deprecated_on_mutable_data_ptr", None)


class FakeMaker:
    """Creates fake tensors of one mode on one device.

    Args:
        mode: Their mode.
        device: Their nominal device.
    """

    def __init__(self, mode: FakeTensorMode, device: torch.device) -> None:
        self.mode = mode
        pattern = FakeTensor(mode, torch.empty(0, device="meta"), device)
        self._device = pattern.fake_device
        self._attributes = dict(vars(pattern))
        self._copies = can_copy()

    def make(self, meta: torch.Tensor) -> torch.Tensor:
        """The fake tensor of a meta tensor that is not shared."""
        if not self._copies:
            return FakeTensor(self.mode, meta, self._device)
        return _copy(meta, self._device, self._attributes)


class PlainFake(NamedTuple):
    """A static, dense tensor that owns its memory; a template for copies."""

    maker: FakeMaker
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    def make(self) -> torch.Tensor:
        """Create a copy."""
        meta = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")
        tensor = self.maker.make(meta)
        return tensor.requires_grad_(True) if self.requires_grad else tensor


def _copy(meta: torch.Tensor, device: torch.device, attributes: dict[str, Any]) -> torch.Tensor:
    made: torch.Tensor = _subclass(
        FakeTensor, meta, meta.requires_grad, dispatch_device=True, device_for_backend_keys=device
    )
    made.__dict__.update(attributes)
    warns = attributes["fake_mode"]._allow_unsafe_data_ptr_access
    (_warn_of_data if warns else _forbid_data)(made)
    return made


@lru_cache(maxsize=1)
def can_copy() -> bool:
    """Whether copying attributes is equivalent to the constructor in this torch."""
    try:
        mode, device = FakeTensorMode(), torch.device("cpu")
        metas = [torch.empty_strided((2, 3), (1, 2), device="meta") for _ in range(3)]
        expected = FakeTensor(mode, metas[0], device)
        found = _copy(metas[1], device, dict(vars(FakeTensor(mode, metas[2], device))))
        keys = torch._C._dispatch_keys
        same = (
            vars(found) == vars(expected)
            and keys(found) == keys(expected)
            and (found.shape, found.stride(), found.device, found.dtype)
            == (expected.shape, expected.stride(), expected.device, expected.dtype)
        )
        with mode:
            total = found + expected
        return same and type(total) is FakeTensor and tuple(total.shape) == (2, 3)
    except Exception:  # noqa: BLE001 - whatever torch changed, its constructor is there
        return False

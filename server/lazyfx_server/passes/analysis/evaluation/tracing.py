"""Prevents torch from computing real values while it runs on fake tensors.

Fake tensors with one constant element store their value, and torch computes operators on such
values for real. For operators without a fake implementation, it runs the kernel on zeros. Both
would run unreviewed operators on unchecked operands. torch's private names for this are used only
here; a test fails if they are gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch._subclasses import fake_tensor
from torch.fx.experimental import proxy_tensor

# Fewer elements than any tensor has.
_NONE = -1


@contextmanager
def without_real_constants() -> Iterator[None]:
    """Within the block, fake tensors store no values and unknown operators have no fallback.

    Process-wide: jobs run one at a time.
    """
    limits = fake_tensor.CONSTANT_NUMEL_LIMIT, proxy_tensor.CONSTANT_NUMEL_LIMIT
    fallback = fake_tensor.FakeTensorMode.can_run_unsafe_fallback
    fake_tensor.CONSTANT_NUMEL_LIMIT = proxy_tensor.CONSTANT_NUMEL_LIMIT = _NONE
    fake_tensor.FakeTensorMode.can_run_unsafe_fallback = lambda *_: False  # type: ignore[method-assign]
    try:
        yield
    finally:
        fake_tensor.CONSTANT_NUMEL_LIMIT, proxy_tensor.CONSTANT_NUMEL_LIMIT = limits
        fake_tensor.FakeTensorMode.can_run_unsafe_fallback = fallback  # type: ignore[method-assign]

"""Compares two results, and makes them comparable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree


def unlike(one: Any, other: Any, rtol: float | None = None, atol: float | None = None) -> str:
    """Why two structures differ, including dtypes and values; "" if they do not.

    Args:
        one: The actual result.
        other: The expected result.
        rtol: Relative tolerance; what `torch.testing.assert_close` takes for the dtype.
        atol: Absolute tolerance; the same.
    """
    (left, spec), (right, other_spec) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    if spec != other_spec:
        return f"{spec} for {other_spec}"
    for a, b in zip(left, right, strict=True):
        if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
            if a != b and not (a != a and b != b):
                return f"{a} for {b}"
            continue
        if (a.dtype, a.shape, a.layout) != (b.dtype, b.shape, b.layout):
            return f"{a.dtype} {a.shape} for {b.dtype} {b.shape}"
        try:
            a, b = (t.to(torch.float64) if t.dtype.itemsize < 4 and t.is_floating_point() else t
                    for t in (a.detach(), b.detach()))  # fmt: skip
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True)
        except AssertionError as error:
            return str(error)
    return ""


@contextmanager
def filling_fresh_memory() -> Iterator[None]:
    """Make torch fill uninitialized memory, so that it has a value to compare."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)

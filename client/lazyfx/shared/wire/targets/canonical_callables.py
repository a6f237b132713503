"""Callables that dynamo creates again in each trace, and the canonical one that represents them.

A nested function has no name under which it could be looked up. Those below have no closure, so all
instances are equivalent; graphs use the canonical one.
"""

# ruff: noqa: SLF001 - the version counter of a tensor has no public spelling

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch

from lazyfx.shared.wire.targets import numpy_wrappers


def lower_version_count_by_1(x: torch.Tensor) -> torch.Tensor:
    """Adjust the version counter like an assignment to `x.data` (same as in torch._dynamo)."""
    torch._C._autograd._unsafe_set_version_counter((x,), (max(x._version - 1, 0),))
    return x


@functools.lru_cache(maxsize=1)
def table() -> dict[str, Callable[..., Any]]:
    """The canonical callables by wire name."""
    return {
        "torch._dynamo.variables.builtin._lower_version_count_by_1": lower_version_count_by_1,
        **numpy_wrappers.wrappers(),
    }


def canonical_name(target: object) -> str | None:
    """The wire name of a callable that dynamo created in a trace, if it has a canonical one."""
    wrapped = numpy_wrappers.wrapper_name(target)
    if wrapped is not None:
        return wrapped if wrapped in table() else None
    if not isinstance(target, types.FunctionType) or target.__closure__ is not None:
        return None
    _, inside, name = target.__qualname__.rpartition("<locals>.")
    full = f"{target.__module__}.{name}"
    return full if inside and full in table() else None

"""The level of forward-mode derivatives, which a process has one of, whatever its threads."""

# ruff: noqa: SLF001 - levels have no public reader

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def forward_level_left() -> Iterator[None]:
    """Leave the level that a graph enters in the block, where it does not do so itself.

    Otherwise all later forward-mode derivatives of the process fail as nested ones.
    """
    before = _is_entered()
    try:
        yield
    finally:
        if not before and _is_entered():
            torch._C._exit_dual_level(level=0)


def _is_entered() -> bool:
    try:
        level = torch._C._enter_dual_level()
    except RuntimeError:  # there is one already, and there can be one only
        return True
    torch._C._exit_dual_level(level=level)
    return False

"""Conditions on the inputs of a pattern at a match."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lazyfx_server.passes.analysis.called_operators import KnownValues
from lazyfx_server.passes.base import InputGuard, Rewrite
from lazyfx_server.passes.errors import PassError


def check_guards(rewrite: Rewrite, field: str) -> None:
    """Refuses conditions that are invalid or cannot be met.

    Raises:
        PassError: Names the condition's field.
    """
    inputs = sum(node.op == "placeholder" for node in rewrite.pattern.graph.nodes)
    for number, guard in enumerate(rewrite.guards):
        where = f"{field}[{number}]"
        if guard.input >= inputs:
            raise PassError(
                f"is {guard.input}; the pattern takes {inputs} inputs", field=f"{where}.input"
            )
        for name in guard.dtypes:
            if not isinstance(getattr(torch, name, None), torch.dtype):
                raise PassError(f"{name!r} is not a torch dtype", field=f"{where}.dtypes")
        if min(guard.shape, default=0) < -1:
            raise PassError("a size must be -1 (any size) or not negative", field=f"{where}.shape")
        if guard.rank is not None and guard.shape and guard.rank != len(guard.shape):
            raise PassError("must be the length of shape", field=f"{where}.rank")


def holds(guards: Sequence[InputGuard], inputs: Sequence[object], known: KnownValues) -> bool:
    """Whether the inputs of a match meet the conditions; unknown inputs do not."""
    return all(_holds(guard, known.tensor(inputs[guard.input])) for guard in guards)


def _holds(guard: InputGuard, value: torch.Tensor | None) -> bool:
    if value is None:
        return False
    if guard.dtypes and str(value.dtype).removeprefix("torch.") not in guard.dtypes:
        return False
    if guard.rank is not None and value.ndim != guard.rank:
        return False
    if not guard.shape:
        return True
    return value.ndim == len(guard.shape) and all(
        wanted in (-1, size) for wanted, size in zip(guard.shape, value.shape, strict=True)
    )

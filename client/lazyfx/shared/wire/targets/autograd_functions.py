"""Autograd functions that exported graphs call by name: `flat_apply(spec, in_spec, "m.F", x, ...)`.

torch imports the named function, so only names in this file are allowed. It uses private names of
torch, all of them here.
"""

# ruff: noqa: SLF001 - operators have no public class

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import torch
from torch.utils import _pytree as pytree

NAMES: Final = frozenset({"torch._dynamo._trace_wrapped_higher_order_op.ModIndex"})
"""torch's own; torch allows them in graphs that are not decomposed yet."""

_NAME_PLACE = 2
_OPERATORS = (torch._ops.OperatorBase, torch._ops.OpOverloadPacket)


@lru_cache(maxsize=1)
def calling_spec() -> pytree.TreeSpec:
    """The first operand of `flat_apply` that means "call the named autograd function"."""
    # Imported lazily: it imports torch's tracing.
    from torch._higher_order_ops.flat_apply import func_to_graphable
    from torch.export.custom_ops import _call_custom_autograd_function_in_pre_dispatch

    return func_to_graphable(_call_custom_autograd_function_in_pre_dispatch)[1]


def forbidden_name(target: object, args: Sequence[Any]) -> str | None:
    """Why a call of `flat_apply` may not call the named function, if so; None for other calls."""
    if not is_flat_apply(target) or (args and isinstance(args[0], _OPERATORS)):
        return None
    name = args[_NAME_PLACE] if len(args) > _NAME_PLACE else None
    if type(name) is not str:
        return "takes an operator, or the literal name of an autograd function"
    return None if name in NAMES else f"may not call the autograd function {name[:100]!r}"


def is_flat_apply(target: object) -> bool:
    """Whether a callable is the higher-order operator `flat_apply`."""
    if type(target) is torch._ops.OpOverload:
        # Nearly all targets; an isinstance check with an abstract class is slow.
        return False
    return isinstance(target, torch._ops.HigherOrderOperator) and target.name() == "flat_apply"

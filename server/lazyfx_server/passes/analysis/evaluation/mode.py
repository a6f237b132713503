"""A dispatch mode in which only reviewed operators run."""

# ruff: noqa: SLF001 - schemas, dispatch keys and the switch of a library have no public spelling

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lazyfx.shared.wire.targets.operator_schemas import facts
from lazyfx_server.passes.analysis.evaluation.composite_operators import (
    UnreviewedCompositeError,
    check_composite,
    is_reviewed_composite,
)
from lazyfx_server.passes.analysis.evaluation.operand_checks import Call, UnsafeOperandsError
from lazyfx_server.passes.analysis.evaluation.reviewed_operators import FRESH, rule_of


class UnreviewedError(RuntimeError):
    """An operator may not run on real values, or not with these operands.

    Attributes:
        operator: Its name.
    """

    def __init__(self, operator: str, reason: str) -> None:
        self.operator = operator
        super().__init__(f"{operator} cannot run on real values: {reason}")


@contextmanager
def reviewed() -> Iterator[None]:
    """Inside, only reviewed operators run on real values; anything else raises.

    Raises:
        UnreviewedError: Raised by the call of the operator that may not run.
    """
    # Decompose recurrent layers, and use no library's kernels.
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with _ReviewedOnly(), _Composed():
            yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


class _Composed(TorchFunctionMode):
    """Intercepts calls from Python, before torch decomposes them."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        try:
            check_composite(func, args, kwargs or {})
        except UnreviewedCompositeError as error:
            raise UnreviewedError(str(error), "its kernel has not been reviewed") from None
        return func(*args, **(kwargs or {}))


class _ReviewedOnly(TorchDispatchMode):
    """Intercepts each operator below autograd, where composite ones are already decomposed."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload):
            raise UnreviewedError(str(func), "only operators have been reviewed")
        rule = rule_of(func)
        if rule is None:
            composed = _in_parts(self, func, args, kwargs)
            if composed is not NotImplemented:
                return composed
            raise UnreviewedError(func.name(), "its kernel has not been reviewed")
        _check_tensors(func, args, kwargs)
        try:
            for check in rule:
                check(Call(func, args, kwargs))
        except UnsafeOperandsError as error:
            raise UnreviewedError(func.name(), str(error)) from None
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise UnreviewedError(func.name(), "its operands could not be checked") from error
        result = func(*args, **kwargs)
        if facts(func).operator.name in FRESH:
            # Uninitialized memory may contain another job's data.
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    leaf.zero_()
        return result


def _in_parts(mode: TorchDispatchMode, func: OpOverload[..., Any], args: Any, kwargs: Any) -> Any:
    """Runs a composite operator decomposed; NotImplemented if it is not composite."""
    if not is_reviewed_composite(func):
        return NotImplemented
    with mode:
        return func.decompose(*args, **kwargs)


def _check_tensors(func: OpOverload[..., Any], args: Any, kwargs: Any) -> None:
    """Require plain dense CPU tensors: other kinds have their own kernels."""
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, torch.Tensor) and (
            leaf.layout is not torch.strided or leaf.is_quantized or leaf.is_nested
        ):
            raise UnreviewedError(func.name(), "an operand is not a dense tensor")
        if isinstance(leaf, torch.layout) and leaf is not torch.strided:
            raise UnreviewedError(func.name(), "a result that is not a dense tensor")

"""NumPy calls as dynamo records them: wrappers around torch's own NumPy functions.

A model that calls `numpy.sqrt` becomes a graph that calls a wrapper of `torch._numpy.sqrt`,
made anew for each node. On the wire it is "torch._numpy.sqrt"; methods of arrays are
"torch._numpy.ndarray.reshape", operators "torch._numpy.operator.add".
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

import torch._numpy
from torch._dynamo import utils

# The one file that leans on dynamo's NumPy wrappers and the functions behind them.
tensors: Any = torch._numpy  # noqa: SLF001
_DENIED: Final = frozenset({"from_dlpack", "set_default_dtype"})
_FUNCTION: Final = "torch._numpy."
_METHOD: Final = "torch._numpy.ndarray."
_OPERATOR: Final = "torch._numpy.operator."


def wrappers() -> dict[str, Callable[..., Any]]:
    """A wrapper for each wire name."""
    table: dict[str, Callable[..., Any]] = {}
    for name in sorted(vars(tensors)):
        value = getattr(tensors, name)
        if callable(value) and _is_open(name) and not isinstance(value, type):
            table[_FUNCTION + name] = utils.numpy_to_tensor_wrapper(value)
    for name in sorted(dir(tensors.ndarray)):
        if callable(getattr(tensors.ndarray, name)) and _is_open(name):
            table[_METHOD + name] = utils.numpy_method_wrapper(name)
    for name in sorted(operator.__all__):
        if name not in ("attrgetter", "call", "itemgetter", "methodcaller"):
            table[_OPERATOR + name] = utils.numpy_operator_wrapper(getattr(operator, name))
    return table


def _is_open(name: str) -> bool:
    return not name.startswith("_") and name not in _DENIED


def wrapper_name(target: object) -> str | None:
    """The wire name of what dynamo wrapped, or None for anything else."""
    if isinstance(target, utils.numpy_to_tensor_wrapper):
        name = target.f.__name__
        return _FUNCTION + name if getattr(tensors, name, None) is target.f else None
    if isinstance(target, utils.numpy_method_wrapper):
        return _METHOD + target.method
    if isinstance(target, utils.numpy_operator_wrapper):
        name = target.op.__name__
        return _OPERATOR + name if getattr(operator, name, None) is target.op else None
    return None

"""NumPy calls as dynamo records them: wrappers around torch's own NumPy functions.

A model that calls `numpy.sqrt` becomes a graph that calls a wrapper of `torch._numpy.sqrt`,
created for each node. On the wire it is "torch._numpy.sqrt", as functions of NumPy's modules are
"torch._numpy.random.rand" and conversions "torch._numpy.float32"; methods of arrays are
"torch._numpy.ndarray.reshape", operators "torch._numpy.operator.add".
"""

# ruff: noqa: SIM905 - a long list of names reads best as words

from __future__ import annotations

import functools
import importlib
import operator
from collections.abc import Callable
from typing import Any, Final

import torch._numpy

# The only file that uses dynamo's NumPy wrappers and the functions behind them.
tensors: Any = torch._numpy  # noqa: SLF001


@functools.lru_cache(maxsize=1)
def _dynamo() -> Any:
    """Dynamo's wrappers. Importing dynamo takes seconds, so it is imported on demand."""
    return importlib.import_module("torch._dynamo.utils")


# Foreign memory, and NumPy's global settings.
_DENIED: Final = frozenset({"from_dlpack", "set_default_dtype"})
# Functions of these modules that create functions or inspect the process.
_NOT_NUMPYS: Final = frozenset({"deco_stream", "linalg_errors", "upcast", "use_numpy_random"})
# Dunder methods that compute; the others create, print or dismantle objects.
_DUNDERS: Final = frozenset(
    f"__{name}__"
    for name in (
        "abs add and contains divmod eq floordiv ge getitem gt iadd iand ifloordiv ilshift "
        "imatmul imod imul invert ior ipow irshift isub itruediv ixor le lshift lt matmul mod "
        "mul ne neg or pos pow radd rand rdivmod rfloordiv rlshift rmatmul rmod rmul ror rpow "
        "rrshift rshift rsub rtruediv rxor setitem sub truediv xor"
    ).split()
)
_MODULES: Final = ("", "fft.", "linalg.", "random.")
_FUNCTION: Final = "torch._numpy."
_METHOD: Final = "torch._numpy.ndarray."
_OPERATOR: Final = "torch._numpy.operator."


def wrappers() -> dict[str, Callable[..., Any]]:
    """The wrapper of each wire name."""
    utils, table = _dynamo(), dict[str, Callable[..., Any]]()
    for name in _names().values():
        table[_FUNCTION + name] = utils.numpy_to_tensor_wrapper(_member(tensors, name))
    for name in sorted(dir(tensors.ndarray)):
        if callable(getattr(tensors.ndarray, name)) and (_is_open(name) or name in _DUNDERS):
            table[_METHOD + name] = utils.numpy_method_wrapper(name)
    for name in sorted(operator.__all__):
        if name not in ("attrgetter", "call", "itemgetter", "methodcaller"):
            table[_OPERATOR + name] = utils.numpy_operator_wrapper(getattr(operator, name))
    return table


@functools.lru_cache(maxsize=1)
def _names() -> dict[int, str]:
    """Names by identity, one per function.

    A function's `__name__` is preferred if it is valid: "float64" for `numpy.double`.
    """
    names: dict[int, str] = {}
    for module in _MODULES:
        home = _member(tensors, module)
        for name in sorted(vars(home)):
            value = getattr(home, name)
            if _is_carried(name, value) and (not module or _is_at_home(value, home)):
                own = value.__name__
                right = own if getattr(home, own, None) is value else name
                names.setdefault(id(value), module + right)
    return names


def _is_at_home(value: Any, home: Any) -> bool:
    return value.__module__ == home.__name__ and value.__name__ not in _NOT_NUMPYS


def _member(home: Any, dotted: str) -> Any:
    return functools.reduce(getattr, filter(None, dotted.split(".")), home)


def _is_carried(name: str, value: object) -> bool:
    if isinstance(value, type):
        # The types that convert to a dtype: numpy.float32(x).
        return issubclass(value, tensors.generic) and hasattr(value, "torch_dtype")
    return callable(value) and _is_open(name)


def _is_open(name: str) -> bool:
    return not name.startswith("_") and name not in _DENIED


def wrapper_name(target: object) -> str | None:
    """The wire name of a function wrapped by dynamo, or None for anything else."""
    if not type(target).__module__.startswith("torch._dynamo"):
        return None
    utils = _dynamo()
    if isinstance(target, utils.numpy_to_tensor_wrapper):
        name = _names().get(id(target.f))
        return None if name is None else _FUNCTION + name
    if isinstance(target, utils.numpy_method_wrapper):
        return f"{_METHOD}{target.method}"
    if isinstance(target, utils.numpy_operator_wrapper):
        name = str(target.op.__name__)
        return _OPERATOR + name if getattr(operator, name, None) is target.op else None
    return None


def expression(target: object) -> str | None:
    """An expression that creates a wrapper in a process with torch alone."""
    name = wrapper_name(target)
    if name is None:
        return None
    utils: Any = _dynamo()
    if isinstance(target, utils.numpy_to_tensor_wrapper):
        return f"torch._dynamo.utils.numpy_to_tensor_wrapper({name})"
    own = name.rpartition(".")[2]
    if isinstance(target, utils.numpy_method_wrapper):
        return f"torch._dynamo.utils.numpy_method_wrapper({own!r})"
    return f"torch._dynamo.utils.numpy_operator_wrapper(operator.{own})"

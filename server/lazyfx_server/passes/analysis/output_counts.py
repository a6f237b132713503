"""Computes how many values a call would create, before it runs.

`unbind` of a tensor with 10^8 rows creates as many tensors, real or fake, in one call into torch
that nothing can interrupt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch.fx import Interpreter

from lazyfx_server.passes.analysis.large_numbers import check_numbers
from lazyfx_server.passes.analysis.packed import check_not_packed
from lazyfx_server.passes.analysis.walk import target_name
from lazyfx_server.passes.errors import PassError
from lazyfx_server.settings.limits import DEFAULT_GRAPH_LIMITS
from lazyfx_server.settings.part import Bound

_MAX_OUTPUTS = DEFAULT_GRAPH_LIMITS.bound("max_outputs")
MAX_OUTPUTS: ContextVar[Bound] = ContextVar("lazyfx_max_outputs", default=_MAX_OUTPUTS)
"""Maximum values that one call may create in the current job."""

Call = tuple[Sequence[Any], Mapping[str, Any]]

# Python callables that iterate over the rows of a tensor as their first or only argument.
_ITERATING: Final = frozenset(
    [
        "list",
        "tuple",
        "sum",
        "sorted",
        "all",
        "any",
        "countOf",
        "indexOf",
        "prod",
        "fsum",
        "dist",
        "iter",
        "enumerate",
    ]
)
_ITERATING_ALONE: Final = frozenset({"max", "min"})
_PYTHONS_OWN: Final = frozenset({"builtins", "_operator", "operator", "math"})


def check_outputs(target: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a call that would create more values than a node may have.

    Args:
        target: A callable, or the name of a method whose object is `args[0]`.
        args: Its positional arguments.
        kwargs: As `args`.

    Raises:
        PassError: It would; names the setting.
    """
    count = outputs_of(target, args, kwargs)
    most = MAX_OUTPUTS.get()
    if count > most.most:
        raise PassError(
            f"{target_name(target)} would have {count} outputs; {most.allowed}",
            kind="limit",
        )


def outputs_of(target: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """How many values a call would create; 0 if it is not known to be many.

    Args:
        target: As for `check_outputs`.
        args: As for `check_outputs`.
        kwargs: As for `check_outputs`.
    """
    name = target_name(target)
    iterates = name in _ITERATING or (name in _ITERATING_ALONE and len(args) == 1)
    # torch's own functions of these names (sum, all, max) return one tensor.
    if iterates and getattr(target, "__module__", None) in _PYTHONS_OWN:
        return _length(args[0]) if args else 0
    count = COUNTED.get(name)
    if count is None:
        return 0
    tensor = args[0] if args else kwargs.get("input", kwargs.get("self"))
    if not isinstance(tensor, torch.Tensor) or not tensor.dim():
        return 0
    try:
        return count(tensor, (args[1:], kwargs))
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return 0  # torch refuses such a call


def _length(value: object) -> int:
    if isinstance(value, torch.Tensor):
        return _number(value.shape[0]) if value.dim() else 0
    return len(value) if isinstance(value, list | tuple | range | dict | str) else 0


def _number(size: object) -> int:
    """A size as a number; for a symbolic one, its hint in torch, or 0."""
    if isinstance(size, torch.SymInt):
        hint = size.node.hint if size.node.has_hint() else None
        return int(hint) if isinstance(hint, int) else 0
    if isinstance(size, int):
        return size
    raise TypeError


def _argument(call: Call, place: int, *names: str, default: Any = None) -> Any:
    args, kwargs = call
    if len(args) > place:
        return args[place]
    return next((kwargs[name] for name in names if name in kwargs), default)


def _size(tensor: torch.Tensor, dim: Any) -> int:
    return _number(tensor.shape[dim])


def _unbind(tensor: torch.Tensor, call: Call) -> int:
    return _size(tensor, _argument(call, 0, "dim", "axis", default=0))


def _split(tensor: torch.Tensor, call: Call) -> int:
    sizes = _argument(call, 0, "split_size_or_sections", "split_size", "split_sizes")
    if isinstance(sizes, list | tuple):
        return len(sizes)
    return -(-_size(tensor, _argument(call, 1, "dim", default=0)) // _number(sizes))


def _chunk(tensor: torch.Tensor, call: Call) -> int:
    size = _size(tensor, _argument(call, 1, "dim", default=0))
    return min(_number(_argument(call, 0, "chunks")), size)


def _sections(call: Call) -> int:
    given = _argument(
        call, 0, "indices_or_sections", "sections", "indices", "tensor_indices_or_sections"
    )
    if isinstance(given, list | tuple):
        return len(given) + 1
    if isinstance(given, torch.Tensor):
        # torch reads it as a list of split points, one per element.
        return _number(given.numel()) + 1 if given.dim() else MAX_OUTPUTS.get().most
    return _number(given)


def _tensor_split(_tensor: torch.Tensor, call: Call) -> int:
    return _sections(call)


COUNTED: Final[Mapping[str, Callable[[torch.Tensor, Call], int]]] = {
    "unbind": _unbind,
    "unbind_copy": _unbind,
    "__iter__": lambda tensor, _call: _size(tensor, 0),
    "split": _split,
    "split_copy": _split,
    "split_with_sizes": _split,
    "split_with_sizes_copy": _split,
    "unsafe_split": _split,
    "unsafe_split_with_sizes": _split,
    "chunk": _chunk,
    "unsafe_chunk": _chunk,
    "tensor_split": _tensor_split,
    "hsplit": _tensor_split,
    "vsplit": _tensor_split,
    "dsplit": _tensor_split,
}
"""Operators, functions and methods whose arguments determine the number of outputs, and how."""


class BoundedInterpreter(Interpreter):
    """An interpreter that refuses calls with too many outputs or too large numbers."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """See torch.fx.Interpreter."""
        check_numbers(target, (*args, *kwargs.values()))
        check_not_packed(target, args, kwargs)
        check_outputs(target, args, kwargs)
        return super().call_function(target, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        """See torch.fx.Interpreter."""
        check_numbers(target, (*args, *kwargs.values()))
        check_outputs(target, args, kwargs)
        return super().call_method(target, args, kwargs)

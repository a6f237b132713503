"""Objects that a pickle creates by calls of functions of torch and Python only."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import operator
import sys
from collections.abc import Callable
from typing import Any


class DeferredCall:
    """Replaces an object in a pickle by a call that creates it.

    To be the same object again, an object must be the same `DeferredCall`: pickle memoizes by
    identity.
    """

    __slots__ = ("_arguments", "_function", "_state")

    def __init__(
        self,
        function: Callable[..., Any] | DeferredCall,
        arguments: tuple[Any, ...],
        state: Any = None,
    ) -> None:
        self._function = function
        self._arguments = arguments
        self._state = state

    def __call__(self) -> None:
        """Makes it callable, as pickle requires of what it calls."""
        raise TypeError("represents a function in the loading process")

    def __reduce__(self) -> tuple[Any, ...]:
        if self._state is None:
            return (self._function, self._arguments)
        return (self._function, self._arguments, self._state)


def after_calls(value: object, *steps: object) -> DeferredCall:
    """`value`, after `steps` have been executed in order."""
    return DeferredCall(operator.getitem, ((value, *steps), 0))


@functools.lru_cache(maxsize=4096)
def by_dotted_name(dotted: str) -> DeferredCall:
    """The object of a dotted name: a module, or an attribute path in one.

    The loading process looks names up by `getattr`: torch.package cannot load names with dots, and
    `__qualname__` of much of torch is not where it can be found.

    Raises:
        LookupError: There is no such object.
    """
    parent, _, name = dotted.rpartition(".")
    if _is_importable(dotted):
        return DeferredCall(importlib.import_module, (dotted,))
    if not parent:
        raise LookupError(dotted)
    return DeferredCall(getattr, (by_dotted_name(parent), name))


@functools.lru_cache(maxsize=4096)
def _is_importable(dotted: str) -> bool:
    """Whether a fresh process can import a name.

    Modules inside torch's binary have no file; they are attributes of their parents.
    """
    try:
        return importlib.util.find_spec(dotted) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def resolve(dotted: str) -> object:
    """The object that `by_dotted_name(dotted)` creates.

    Raises:
        LookupError: There is no such object.
    """
    if _is_importable(dotted):
        return importlib.import_module(dotted)
    parent, _, name = dotted.rpartition(".")
    if not parent or not hasattr(owner := resolve(parent), name):
        raise LookupError(dotted)
    return getattr(owner, name)


def dotted_name_of(value: object) -> str | None:
    """The dotted name of a module-level object, found in the module of its type."""
    module = sys.modules.get(type(value).__module__)
    for name, other in vars(module).items() if module is not None else ():
        if other is value and name.isidentifier():
            return f"{type(value).__module__}.{name}"
    return None

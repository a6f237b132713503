"""Objects that a pickle makes by a call, of torch's and Python's own functions only."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import operator
import sys
from collections.abc import Callable
from typing import Any


class DeferredCall:
    """Takes the place of an object in a pickle, which makes it by calling a function.

    Equal objects must be the same `DeferredCall` to be the same object again: pickle remembers by
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
        """Only makes it callable, as pickle asks of what it shall call."""
        raise TypeError("stands for a function where it is loaded")

    def __reduce__(self) -> tuple[Any, ...]:
        if self._state is None:
            return (self._function, self._arguments)
        return (self._function, self._arguments, self._state)


def after_calls(value: object, *steps: object) -> DeferredCall:
    """`value`, once `steps` have been made, in this order, from left to right."""
    return DeferredCall(operator.getitem, ((value, *steps), 0))


@functools.lru_cache(maxsize=4096)
def by_dotted_name(dotted: str) -> DeferredCall:
    """The object of a dotted name: a module, or what is found in one by attributes.

    A name is looked up where the pickle is loaded, by `getattr`: torch.package cannot load names
    with dots, and much of torch calls itself something else than what it can be found as.

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

    Modules inside torch's library are in no file; they are attributes of their parents.
    """
    try:
        return importlib.util.find_spec(dotted) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def resolve(dotted: str) -> object:
    """The object that `by_dotted_name(dotted)` makes.

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
    """The dotted name of a module-level object, looked for in the module of its type."""
    module = sys.modules.get(type(value).__module__)
    for name, other in vars(module).items() if module is not None else ():
        if other is value and name.isidentifier():
            return f"{type(value).__module__}.{name}"
    return None

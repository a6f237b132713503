"""Bounds what graphs compute with Python's numbers and lists, which are unbounded.

`10 ** 10 ** 10` would keep a worker busy for hours, in one instruction that no timer interrupts,
and is useless for shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_MAX_BITS = 8192
_MAX_ITEMS = 100_000
_MAX_DIGITS = 1024
_POWERS = frozenset({"pow", "ipow", "rpow"})
_SHIFTS = frozenset({"lshift", "ilshift", "rlshift"})
_REVERSED = frozenset({"rpow", "rlshift"})
_FORMATS = frozenset({"mod", "imod"})
_ROUNDINGS = frozenset({"round", "special_round"})
_PRODUCTS = frozenset({"mul", "imul", "rmul"})


class TooLargeError(Exception):
    """A number or a list would be larger than anything that tensor sizes need."""

    def __init__(self) -> None:
        super().__init__("a number, text or list that Python computes here would be too long")


def check_numbers(target: object, operands: Sequence[Any]) -> None:
    """Refuse a call of a Python callable that could take very long or return something very large.

    Args:
        target: A callable, or the name of a method.
        operands: Its operands.

    Raises:
        TooLargeError: The call is refused.
    """
    if any(_is_long(operand) for operand in operands):
        raise TooLargeError
    name = target if isinstance(target, str) else str(getattr(target, "__name__", ""))
    name = name.partition(".")[0].strip("_")
    if name in _REVERSED:
        operands = operands[::-1]
    numbers = [operand for operand in operands if isinstance(operand, int)]
    lists = [operand for operand in operands if isinstance(operand, list | tuple | str)]
    if name in _POWERS and len(numbers) == 2:
        _bounded(numbers[0].bit_length() * max(numbers[1], 0), _MAX_BITS)
    elif name in _SHIFTS and len(numbers) == 2:
        _bounded(numbers[1], _MAX_BITS)
    elif name in _PRODUCTS and len(numbers) == 1 and len(lists) == 1:
        _bounded(len(lists[0]) * max(numbers[0], 0), _MAX_ITEMS)
    elif name in _ROUNDINGS:
        # The number of digits is an exponent of Python's, also where a tensor is rounded.
        digits = (abs(operand) for operand in operands[1:] if isinstance(operand, int))
        _bounded(max(digits, default=0), _MAX_DIGITS)
    elif name in _FORMATS and operands and isinstance(operands[0], str):
        raise TooLargeError  # "%1000000000d" % 1 is a string of a gigabyte


def _bounded(size: int, most: int) -> None:
    if size > most:
        raise TooLargeError


def _is_long(value: object) -> bool:
    if isinstance(value, int):
        return value.bit_length() > _MAX_BITS
    if isinstance(value, range):
        return value.stop - value.start > _MAX_ITEMS or value.start - value.stop > _MAX_ITEMS
    if isinstance(value, list | tuple | dict):
        items: Iterable[object] = value.values() if isinstance(value, dict) else value
        return len(value) > _MAX_ITEMS or any(
            isinstance(item, range | int) and _is_long(item) for item in items
        )
    return False

"""Numbers that torch.fx would write incorrectly.

torch.fx writes literals with `repr`, and operators around them without parentheses: the base of
`operator.pow(-2, x)` as `-2 ** x`, which is `-(2 ** x)`, and `complex(-0.0, -1.0)` as
`(-0-1j)`, whose real part is 0.0. A decoded graph contains such numbers as instances of the classes
below, which are equal numbers with a different text.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any


class _Parenthesized:
    """Written in parentheses; pickled as the plain number."""

    _plain: Callable[[Any], Any]

    def __repr__(self) -> str:
        return f"({self._plain(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (self._plain, (self._plain(self),))


class ParenthesizedInt(_Parenthesized, int):
    """A negative integer that needs parentheses before an operator."""

    _plain = int


class ParenthesizedFloat(_Parenthesized, float):
    """A negative number that needs parentheses before an operator."""

    _plain = float


class ExactComplex(complex):
    """A complex number written as a call, which keeps the signs of zeros."""

    def __repr__(self) -> str:
        return f"complex({self.real!r}, {self.imag!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (complex, (self.real, self.imag))


_TYPES: dict[type, Callable[[Any], Any]] = {
    ParenthesizedInt: int,
    ParenthesizedFloat: float,
    ExactComplex: lambda value: complex(value.real, value.imag),
}


def exact_complex(real: float, imaginary: float) -> complex:
    """A complex number whose text evaluates to exactly that number."""
    if imaginary and (real or (imaginary > 0 and math.copysign(1.0, real) > 0)):
        return complex(real, imaginary)
    return ExactComplex(real, imaginary)


def with_exact_base(target: object, args: list[Any]) -> list[Any]:
    """The literal arguments of a call, safe to write around its operator."""
    if target is operator.pow and args and math.copysign(1.0, _real(args[0])) < 0:
        written = ParenthesizedFloat if type(args[0]) is float else ParenthesizedInt
        return [written(args[0]), *args[1:]]
    return args


def _real(value: object) -> float | int:
    """The part whose sign would be separated; positive if none would be."""
    if type(value) is int:
        return -1 if value < 0 else 1
    return value if type(value) is float and not math.isnan(value) else 1


def plain(value: Any) -> Any:
    """The plain number of one of these classes; any other value unchanged."""
    make = _TYPES.get(type(value))
    return value if make is None else make(value)

"""The closed types of values sent with a graph, and why a value does not have its type.

Each value reaches a compiler: in its command line, in generated source, or in a decision. So none
is free text: strings are from a list, and numbers have bounds.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from lazyfx.shared.printable import shown

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")


@dataclass(frozen=True, slots=True)
class Bool:
    """True or False, but not 0 or 1."""

    def __str__(self) -> str:
        return "true or false"

    def accepts(self, value: object) -> bool:
        """Whether a value is of this type."""
        return type(value) is bool


@dataclass(frozen=True, slots=True)
class Int:
    """An integer within inclusive bounds, but not a bool."""

    minimum: int
    maximum: int

    def __str__(self) -> str:
        return f"an integer from {self.minimum} to {self.maximum}"

    def accepts(self, value: object) -> bool:
        """Whether a value is of this type."""
        return type(value) is int and self.minimum <= value <= self.maximum


@dataclass(frozen=True, slots=True)
class Float:
    """A finite float within inclusive bounds."""

    minimum: float
    maximum: float

    def __str__(self) -> str:
        return f"a number from {self.minimum:g} to {self.maximum:g}"

    def accepts(self, value: object) -> bool:
        """Whether a value is of this type."""
        return (
            type(value) is float and math.isfinite(value) and self.minimum <= value <= self.maximum
        )


@dataclass(frozen=True, slots=True)
class Words:
    """One of a list of strings."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(map(repr, self.words))}"

    def accepts(self, value: object) -> bool:
        """Whether a value is of this type."""
        return type(value) is str and value in self.words


@dataclass(frozen=True, slots=True)
class Name:
    """A name of an operator, module or the like: of bounded length and a restricted alphabet."""

    longest: int = 128

    def __str__(self) -> str:
        return f"a name of letters, digits and _.:- of at most {self.longest} characters"

    def accepts(self, value: object) -> bool:
        """Whether a value is of this type."""
        return type(value) is str and len(value) <= self.longest and bool(_NAME.fullmatch(value))


ValueType: TypeAlias = "Bool | Int | Float | Words | Name"


def mismatch_reason(value: object, expected: ValueType) -> str:
    """Why a value does not have a type; "" if it does.

    Args:
        value: Anything from a caller, of any length.
        expected: The type.

    Returns:
        Text to follow the name of the value: "is 7; it must be true or false".
    """
    return "" if expected.accepts(value) else f"is {shown(value)}; it must be {expected}"

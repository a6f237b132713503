"""The error of the checks of generated native source, and the strings that they all allow."""

from __future__ import annotations

import re
from typing import Final

_LONGEST_LITERAL: Final = 4000
_SHOWN: Final = 80
# Words, sentences, names of operators and types, conditions on sizes. No quotes, semicolons or
# braces, and no backslashes except in line ends and tabs.
_PLAIN: Final = re.compile(r"(?:[A-Za-z0-9_ .,:<>=()\[\]+*/%|&!?'@^~-]|\\n|\\t)*", re.ASCII)


class NativeSourceRefused(Exception):  # noqa: N818 - reads as what happened
    """Generated source contains something that Inductor's templates do not write."""


def refuse(reason: str, source: str, position: int) -> NativeSourceRefused:
    """The error to raise.

    Args:
        reason: What is wrong.
        source: The source.
        position: The offset in characters.
    """
    line = source.count("\n", 0, position) + 1
    shown = ascii(source[position : position + _SHOWN])
    return NativeSourceRefused(f"line {line}: {reason}: {shown}")


def is_plain_literal(text: str) -> bool:
    """Whether the contents of a string literal are plain words, as in templates."""
    return len(text) <= _LONGEST_LITERAL and bool(_PLAIN.fullmatch(text))

"""What the readers of generated native source raise, and the strings that they all take."""

from __future__ import annotations

import re
from typing import Final

_LONGEST_LITERAL: Final = 4000
_SHOWN: Final = 80
# Words, sentences, names of operators and types, conditions on sizes; no quotes, no semicolon, no
# braces, no backslash but those of line ends and tabs.
_PLAIN: Final = re.compile(r"(?:[A-Za-z0-9_ .,:<>=()\[\]+*/%|&!?'@^~-]|\\n|\\t)*", re.ASCII)


class NativeSourceRefused(Exception):  # noqa: N818 - reads as what happened
    """Generated source holds something that Inductor's templates do not write; says what."""


def refuse(reason: str, source: str, position: int) -> NativeSourceRefused:
    """What to raise.

    Args:
        reason: What is wrong.
        source: The source.
        position: Where, in characters.
    """
    line = source.count("\n", 0, position) + 1
    shown = ascii(source[position : position + _SHOWN])
    return NativeSourceRefused(f"line {line}: {reason}: {shown}")


def is_plain_literal(text: str) -> bool:
    """Whether the characters between quotes are words as templates have them."""
    return len(text) <= _LONGEST_LITERAL and bool(_PLAIN.fullmatch(text))

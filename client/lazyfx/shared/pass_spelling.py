"""Passes as text: `name,name{option=value,option=value}`, as servers spell pipelines.

Values are `true`, `false`, numbers, double-quoted strings (JSON) and `[lists]` of those.
Passes that run until the graph is stable are in parentheses after that word:
`until_stable{at_most=4}(name,name)`. `parse` is the inverse of `spell`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from lazyfx.errors import LazyfxError

Option: TypeAlias = "bool | int | float | str | tuple[Option, ...] | list[Option]"
NamedOptions: TypeAlias = "tuple[str, Mapping[str, Option]]"

UNTIL_STABLE = "until_stable"
PLUGIN_GROUP = "lazyfx.passes"
"""Entry point group by which distributions provide passes."""


class Group(NamedTuple):
    """Passes that are repeated, and the group's own name and options."""

    name: str
    options: Mapping[str, Option]
    passes: tuple[NamedOptions, ...]


Spelled: TypeAlias = "NamedOptions | Group"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_SCALAR = re.compile(r'"(?:[^"\\]|\\.)*"|[^,\[\]{}"\s]+')
_INTEGER = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WORDS: Mapping[str, bool | float] = MappingProxyType(
    {
        "true": True,
        "false": False,
        "inf": float("inf"),
        "-inf": float("-inf"),
        "nan": float("nan"),
    }
)


class SpellingError(LazyfxError):
    """Text is not the spelling of a pipeline; the message says what was expected where."""


def parse(text: str) -> list[Spelled]:
    """Parse the spelling of a pipeline; empty text is an empty pipeline.

    Args:
        text: E.g. `dead_code_elimination,constant_fold{max_bytes=4096}`.

    Returns:
        The name and the options of each pass, or a Group.

    Raises:
        SpellingError: The text is invalid; names the character.
    """
    reader = _Reader(text)
    return reader.pipeline() if text.strip() else []


def spell(passes: Iterable[Spelled]) -> str:
    """Write passes as text.

    Args:
        passes: The name and the options of each pass, or a Group.

    Raises:
        LazyfxError: An option has a type that options cannot have.
    """
    return ",".join(_spell_any(each) for each in passes)


def _spell_any(spelled: Spelled) -> str:
    written = _spell_pass(spelled[0], spelled[1])
    return f"{written}({spell(spelled.passes)})" if isinstance(spelled, Group) else written


def _spell_pass(name: str, options: Mapping[str, Option]) -> str:
    if not options:
        return name
    inner = ",".join(f"{key}={_spell_value(key, options[key])}" for key in sorted(options))
    return f"{name}{{{inner}}}"


def _spell_value(name: str, value: Option) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_spell_value(name, item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return repr(value)
    raise LazyfxError(
        f"option {name!r} has a {type(value).__name__}; options are bool, int, float, str or lists"
    )


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def pipeline(self) -> list[Spelled]:
        passes: list[Spelled] = [self.entry()]
        while self.take(","):
            passes.append(self.entry())
        if self.at < len(self.text):
            raise self.error("',' or the end")
        return passes

    def entry(self) -> Spelled:
        name, options = self.named()
        if name != UNTIL_STABLE or not self.take("("):
            return name, options
        passes = [self.named()]
        while self.take(","):
            passes.append(self.named())
        if not self.take(")"):
            raise self.error("',' or ')'")
        return Group(name, options, tuple(passes))

    def named(self) -> NamedOptions:
        name = self.match(_NAME, "a pass name")
        return name, self.options() if self.take("{") else {}

    def options(self) -> dict[str, Option]:
        options: dict[str, Option] = {}
        while not self.take("}"):
            if options and not self.take(","):
                raise self.error("',' or '}'")
            name = self.match(_NAME, "an option name")
            if name in options:
                raise self.error(f"each option once, not {name!r} again")
            if not self.take("="):
                raise self.error("'='")
            options[name] = self.value()
        return options

    def value(self) -> Option:
        if not self.take("["):
            return self.scalar()
        items: list[Option] = []
        while not self.take("]"):
            if items and not self.take(","):
                raise self.error("',' or ']'")
            items.append(self.scalar())
        return tuple(items)

    def scalar(self) -> bool | int | float | str:
        word = self.match(_SCALAR, "a value")
        if word in _WORDS:
            return _WORDS[word]
        if _INTEGER.fullmatch(word):
            return int(word)
        if _DECIMAL.fullmatch(word):
            return float(word)
        if word.startswith('"'):
            try:
                return str(json.loads(word))
            except ValueError:
                pass
        raise self.error(f"true, false, a number or a double-quoted string, not {word!r},")

    def match(self, pattern: re.Pattern[str], wanted: str) -> str:
        self.skip()
        found = pattern.match(self.text, self.at)
        if found is None:
            raise self.error(wanted)
        self.at = found.end()
        self.skip()
        return found.group()

    def take(self, character: str) -> bool:
        self.skip()
        if not self.text.startswith(character, self.at):
            return False
        self.at += 1
        self.skip()
        return True

    def skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def error(self, wanted: str) -> SpellingError:
        return SpellingError(
            f"passes: expected {wanted} before character {self.at + 1} of {self.text!r}"
        )

"""Options of passes as text: one canonical spelling that reads back as it was written.

A pipeline is `name,name{option=value,option=value}`; options that have their
default are left out, the others come sorted. Values are `true`, `false`, numbers,
double-quoted strings (JSON) and `[lists]` of those.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields

from lazyfx_server.passes.base import OptionScalar, OptionValue, Pass
from lazyfx_server.passes.errors import PassError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_SCALAR = re.compile(r'"(?:[^"\\]|\\.)*"|[^,\[\]{}"\s]+')
_SPECIAL_FLOATS = frozenset(("inf", "-inf", "nan"))


def changed_options(pass_: Pass) -> dict[str, OptionValue]:
    """The options of a pass that differ from their defaults, sorted by name."""
    values = {f.name: getattr(pass_, f.name) for f in fields(pass_)}
    defaults = {f.name: f.default for f in fields(pass_)}
    return {
        name: values[name]
        for name in sorted(values)
        if _typed(values[name]) != _typed(defaults[name])
    }


def spell_pass(name: str, options: Mapping[str, OptionValue]) -> str:
    """Spells one pass with the options given."""
    if not options:
        return name
    inner = ",".join(f"{key}={spell_value(options[key])}" for key in sorted(options))
    return f"{name}{{{inner}}}"


def spell_value(value: OptionValue) -> str:
    """Spells an option's value."""
    if isinstance(value, tuple):
        return "[" + ",".join(spell_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value)
    return repr(value)


def parse_spelling(text: str) -> list[tuple[str, dict[str, OptionValue]]]:
    """Reads a pipeline's spelling: [(pass name, options), ...].

    Raises:
        PassError: The text is not a spelling; says at which character.
    """
    return _Reader(text).pipeline()


def _typed(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(_typed(item) for item in value)
    return (type(value), repr(value))


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def pipeline(self) -> list[tuple[str, dict[str, OptionValue]]]:
        passes: list[tuple[str, dict[str, OptionValue]]] = []
        if not self.text.strip():
            return passes
        while True:
            name = self.match(_NAME, "a pass name")
            passes.append((name, self.options() if self.take("{") else {}))
            if not self.take(","):
                break
        if self.at < len(self.text):
            raise self.error("',' or the end")
        return passes

    def options(self) -> dict[str, OptionValue]:
        options: dict[str, OptionValue] = {}
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

    def value(self) -> OptionValue:
        if not self.take("["):
            return self.scalar()
        items: list[OptionScalar] = []
        while not self.take("]"):
            if items and not self.take(","):
                raise self.error("',' or ']'")
            items.append(self.scalar())
        return tuple(items)

    def scalar(self) -> OptionScalar:
        word = self.match(_SCALAR, "a value")
        if word in {"true", "false"}:
            return word == "true"
        if word in _SPECIAL_FLOATS:
            return float(word)
        try:
            value: OptionScalar = json.loads(word)
        except ValueError:
            raise self.error("true, false, a number or a quoted string") from None
        return value

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

    def error(self, wanted: str) -> PassError:
        return PassError(
            f"expected {wanted} at character {self.at + 1} of {self.text!r}", field="passes"
        )


def spell_pipeline(passes: Sequence[Pass]) -> str:
    """The canonical spelling of passes in order."""
    return ",".join(spell_pass(p.name, changed_options(p)) for p in passes)

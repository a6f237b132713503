"""Describes what is wrong with a setting, in a sentence, instead of pydantic's own message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lazyfx.shared.suggesting import closest

_MAX_SHOWN: Final = 80
# By pydantic's types of errors.
_TAKES: Final = {
    "int_parsing": "an integer",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "a smaller number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "byte_size": "a number of bytes, such as 256MiB",
    "byte_size_unit": "a number of bytes, such as 256MiB",
    "string_type": "a string",
    "path_type": "a path",
    "list_type": "comma-separated names",
}
_BOUNDS: Final = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def describe_mistake(error: Mapping[str, Any]) -> str:
    """One pydantic error as the expected and the given value.

    Args:
        error: An item of `ValidationError.errors`.
    """
    kind, context = error["type"], error.get("ctx", {})
    given = _shown(error["input"])
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        words = [word.strip(" '") for word in context["expected"].replace(" or ", ",").split(",")]
        meant = closest(str(error["input"]), words)
        guess = f"; did you mean {meant!r}?" if meant else ""
        return f"must be {', '.join(words[:-1])} or {words[-1]}, not {given}{guess}"
    if kind in _BOUNDS:
        key, than = _BOUNDS[kind]
        return f"must be {than} {context[key]:g}, not {given}"
    if kind in _TAKES:
        return f"must be {_TAKES[kind]}, not {given}"
    return f"{error['msg']} ({given})"


def _shown(given: object) -> str:
    text = repr(given) if isinstance(given, str) else str(given)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."

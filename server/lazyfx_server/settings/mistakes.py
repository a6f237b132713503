"""What is wrong with a setting, in a sentence; the validator's own words are its library's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lazyfx.shared.suggesting import closest

_MAX_SHOWN: Final = 80
# By the kinds of errors that pydantic tells apart.
_TAKES: Final = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "byte_size": "a number of bytes, such as 256MiB",
    "byte_size_unit": "a number of bytes, such as 256MiB",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "names with commas between them",
}
_BOUNDS: Final = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def describe_mistake(error: Mapping[str, Any]) -> str:
    """One error of pydantic's as what the setting takes, and what it was given.

    Args:
        error: As `ValidationError.errors` lists it.
    """
    kind, context = error["type"], error.get("ctx", {})
    given = _shown(error["input"])
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        words = [word.strip(" '") for word in context["expected"].replace(" or ", ",").split(",")]
        meant = closest(str(error["input"]), words)
        guess = f"; did you mean {meant!r}?" if meant else ""
        return f"takes {', '.join(words[:-1])} or {words[-1]}, not {given}{guess}"
    if kind in _BOUNDS:
        key, than = _BOUNDS[kind]
        return f"must be {than} {context[key]:g}, not {given}"
    if kind in _TAKES:
        return f"takes {_TAKES[kind]}, not {given}"
    return f"{error['msg']} ({given})"


def _shown(given: object) -> str:
    text = repr(given) if isinstance(given, str) else str(given)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."

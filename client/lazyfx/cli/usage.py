"""Rewords usage errors of commands: typer shows those of its validator."""

from __future__ import annotations

import re
from typing import Any, Final

import typer
from typer.core import TyperCommand

from lazyfx.shared.suggesting import closest

_WORDS: Final = (
    (re.compile(r"^Value error, "), ""),
    (re.compile(r"^Input should be greater than or equal to (\S+)$"), r"must be at least \1"),
    (re.compile(r"^Input should be greater than (\S+)$"), r"must be more than \1"),
    (re.compile(r"^Input should be less than or equal to (\S+)$"), r"must be at most \1"),
    (re.compile(r"^Input should be a valid integer\b.*$"), "must be an integer"),
    (re.compile(r"^Input should be a valid number\b.*$"), "must be a number"),
)
_CHOICE: Final = re.compile(r"^'(?P<given>.*)' is not one of (?P<known>.*?)\.?$")


def in_plain_words(message: str) -> str:
    """A validator's message about a value, reworded for an option."""
    for pattern, words in _WORDS:
        message = pattern.sub(words, message)
    if found := _CHOICE.match(message):
        known = [word.strip(" '") for word in found["known"].split(",")]
        if meant := closest(found["given"], known):
            return f"{message.rstrip('.')}; did you mean {meant!r}?"
    return message


class Command(TyperCommand):
    """A command with plain usage errors."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See `click.Command.parse_args`.

        Raises:
            typer.BadParameter: A value is invalid for its option.
        """
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = in_plain_words(error.message)
            raise

"""Detects misspelled environment variables, which nothing reads."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Iterator
from typing import Final

PREFIX: Final = "LAZYFX_"

CLIENT_VARIABLES: Final = frozenset(
    {
        "ADDRESS", "AGREEMENT", "BALANCE", "CA", "CLIENT_CERTIFICATE", "CLIENT_KEY", "COMPILE",
        "EQUAL_BLOCKS", "HEDGE_AFTER", "KNOWN_SERVERS", "ON_ERROR", "PASSES", "PREFETCH",
        "PRIORITY", "RECORD", "SEND_VALUES", "SERVER_HOST", "TIMEOUT", "TOKEN", "TOKEN_FILE",
        "VERIFY_KEYS", "WAIT",
    }
)  # fmt: skip
"""Variables that clients and the backend read, without the prefix."""

# Settings of `lazyfx serve` with names similar to those of clients.
_OF_SERVERS: Final = frozenset({"CLIENT_CA", "CLIENT_NAMES", "SERVER_KEY", "SERVER_NAME", "TOKENS"})
# Other tools may use variables with this prefix, so only very similar names count as typos.
_CLOSE: Final = 0.8

_log = logging.getLogger("lazyfx")
_warned: set[str] = set()


def misspelled(known: Iterable[str] = CLIENT_VARIABLES | _OF_SERVERS) -> Iterator[str]:
    """A message for each set variable that was probably meant to be another one.

    Args:
        known: Names without the prefix.
    """
    names = sorted(known)
    for variable in sorted(os.environ):
        name = variable.removeprefix(PREFIX)
        if name == variable or name in names:
            continue
        for meant in difflib.get_close_matches(name, names, n=1, cutoff=_CLOSE):
            yield f"{variable} is set, but lazyfx does not read it; did you mean {PREFIX}{meant}?"


def warn_of_misspelled() -> None:
    """Log each of them as a warning, once per process."""
    for sentence in misspelled():
        if sentence not in _warned:
            _warned.add(sentence)
            _log.warning(sentence)

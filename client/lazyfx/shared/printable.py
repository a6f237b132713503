"""Makes untrusted text safe to show: on a terminal, in a log, in a notebook, in an exception.

Control characters move a terminal's cursor, and start the sequences that set its title, colour text
or create links; bidirectional overrides show text in a different order. All of them are escaped, so
that a reader can see them.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

MAX_TEXT: Final = 4096
"""Default number of characters that are shown of one text."""

# Characters that `str.isprintable` refuses but a line of text may contain.
_BREAKS: Final = frozenset("\n\t")
_BRAILLE_BLANK: Final = "\u2800"
_RUNS: Final = re.compile(r"[^\x20-\x7e]+")

# Characters of one value in an error message.
_SHOWN: Final = 80


def printable(text: str, most: int = MAX_TEXT, *, keep: frozenset[str] = _BREAKS) -> str:
    """Text with characters escaped that would mislead a terminal or a reader.

    Args:
        text: Untrusted text.
        most: Maximum characters; the number of further ones is appended.
        keep: Characters that are kept although they are not printable.

    Returns:
        The text; control characters, format characters (bidirectional overrides, invisible
        joiners), surrogates, private and unassigned characters as Python escapes.
    """
    cut = len(text) - most
    if cut > 0:
        text = text[:most]
    if not (text.isascii() and text.isprintable()):
        text = _RUNS.sub(lambda run: "".join(_shown(c, keep) for c in run[0]), text)
    return f"{text}... ({cut} more characters)" if cut > 0 else text


def one_line(text: str, most: int = MAX_TEXT) -> str:
    """The same, without line breaks."""
    return printable(text, most, keep=frozenset())


def _shown(character: str, keep: frozenset[str]) -> str:
    if character in keep or (character.isprintable() and character != _BRAILLE_BLANK):
        # Letters of right-to-left scripts are allowed; stacked combining marks are bounded by the
        # length of the text.
        return character
    if unicodedata.category(character) == "Zs":  # other spaces
        return " "
    return character.encode("unicode_escape").decode("ascii")


def make_printable(message: Message, most: int = MAX_TEXT) -> None:
    """Make every string in a message printable, including nested messages and maps.

    Valid names with a meaning (paths, identifiers) contain no such characters.

    Args:
        message: An untrusted message; changed in place.
        most: Maximum characters of each string.
    """
    for field, value in message.ListFields():
        if field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE):
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            _clean_strings(message, field.name, value, most)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            _clean_map(value, most)
        elif isinstance(value, Message):
            make_printable(value, most)
        else:
            for item in value:
                make_printable(item, most)


def _clean_strings(message: Message, name: str, value: object, most: int) -> None:
    if isinstance(value, str):
        shown = printable(value, most)
        if shown != value:
            setattr(message, name, shown)
        return
    rows = getattr(message, name)
    for i, text in enumerate(rows):
        shown = printable(text, most)
        if shown != text:
            rows[i] = shown


def _clean_map(entries: object, most: int) -> None:
    """All maps of this service are those of `google.protobuf.Struct`: strings to messages."""
    assert hasattr(entries, "items")
    for key in list(entries):  # type: ignore[call-overload]
        value = entries[key]  # type: ignore[index]
        if isinstance(value, Message):
            make_printable(value, most)
        shown = printable(key, most) if isinstance(key, str) else key
        if shown != key:
            if isinstance(value, Message):
                entries[shown].CopyFrom(value)  # type: ignore[index]
            else:
                entries[shown] = value  # type: ignore[index]
            del entries[key]  # type: ignore[attr-defined]


def shown(value: object) -> str:
    """A value for an error message: bounded, on one line, without control characters."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (str, bytes)):
        value = value[: _SHOWN + 1]
    elif not isinstance(value, (bool, int, float)) and value is not None:
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

"""Leaves: single fields of nodes, with a comparison key and a text."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any, NamedTuple

from google.protobuf.message import Message


class Device(NamedTuple):
    """A device as it enters the digest: its number within its type, 0 for unspecified."""

    kind: str
    slot: int


class Leaf(NamedTuple):
    """One field of a node.

    Attributes:
        kind: "literal", "node", "memory", "attribute", "graph", "group", "device" or
            "expression".
        key: The comparison key of leaves of one kind.
        text: The text for people.
    """

    kind: str
    key: Hashable
    text: str


def literal(text: str) -> Leaf:
    """A leaf that is compared by its text."""
    return Leaf("literal", text, text)


def number(value: float) -> Leaf:
    """A leaf that distinguishes 1, 1.0 and True, and -0.0 from 0.0."""
    sign = math.copysign(1.0, value) if isinstance(value, float) else 0
    key = "nan" if value != value else value
    return Leaf("literal", (type(value), key, sign), f"{value!r} ({type(value).__name__})")


def message_leaf(message: Message) -> Leaf:
    """A leaf of a whole message, or of one that this version cannot read."""
    text = " ".join(str(message).split()) or "nothing"
    return Leaf("literal", message.SerializeToString(deterministic=True), text.split(" ")[0])


def enum_word(enum: Any, value: int, prefix: str | None = None) -> str:
    """DTYPE_FLOAT32 as "float32"."""
    try:
        name: str = enum.Name(value)
    except ValueError:
        return f"number {value}"
    first = enum.keys()[0]
    return name.removeprefix(prefix or first.removesuffix("UNSPECIFIED")).lower()

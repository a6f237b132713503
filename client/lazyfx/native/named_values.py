"""Names with a bool, int, float or str each, as messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from lazyfx.errors import LazyfxError
from lazyfx.v1 import compiler_pb2 as pb

Scalar: TypeAlias = "bool | int | float | str"

_FIELDS = {bool: "boolean", int: "integer", float: "floating", str: "text"}


def to_messages(values: Mapping[str, Scalar]) -> list[pb.PassOption]:
    """Messages, sorted by name."""
    return [
        pb.PassOption(name=name, value=pb.OptionValue(**{_FIELDS[type(value)]: value}))  # type: ignore[arg-type]
        for name, value in sorted(values.items())
    ]


def from_messages(messages: Iterable[pb.PassOption], field: str) -> dict[str, Scalar]:
    """The names and values of messages.

    Args:
        messages: As `to_messages` makes them.
        field: What they are, to name it in errors.

    Raises:
        LazyfxError: A name comes twice, or a value is no scalar.
    """
    found: dict[str, Scalar] = {}
    for message in messages:
        kind = message.value.WhichOneof("kind")
        if kind not in _FIELDS.values() or message.name in found:
            raise LazyfxError(f"{field}: {message.name[:100]!r} comes twice or has no plain value")
        found[message.name] = getattr(message.value, str(kind))
    return found

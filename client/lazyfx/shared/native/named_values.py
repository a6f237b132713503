"""Named values (bool, int, float or str) as messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias, cast

from lazyfx.errors import LazyfxError
from lazyfx.shared.native.setting_types import ValueType, mismatch_reason
from lazyfx.shared.printable import shown
from lazyfx.v1 import compiler_pb2 as pb

Scalar: TypeAlias = "bool | int | float | str"

_FIELDS = {bool: "boolean", int: "integer", float: "floating", str: "text"}


class NamedValueError(LazyfxError):
    """An invalid value.

    Attributes:
        field: Its path, "native.settings[max_fusion_size]".
        reason: What is wrong with it, and what is valid.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field = field
        self.reason = reason


def to_messages(values: Mapping[str, Scalar]) -> list[pb.PassOption]:
    """Write values as messages, sorted by name."""
    return [
        pb.PassOption(name=name, value=pb.OptionValue(**{_FIELDS[type(value)]: value}))  # type: ignore[arg-type]
        for name, value in sorted(values.items())
    ]


def read_typed(
    messages: Iterable[pb.PassOption], field: str, types: Mapping[str, ValueType]
) -> dict[str, Scalar]:
    """Read names and values of messages, and check their types.

    Args:
        messages: As written by `to_messages`.
        field: Path of the field that contains them, for errors.
        types: The known names, and the type of each.

    Raises:
        NamedValueError: A name is unknown or given twice, or a value has the wrong type.
    """
    found: dict[str, Scalar] = {}
    for message in messages:
        name = message.name
        expected = types.get(name)
        if expected is None:
            known = ", ".join(sorted(types))
            raise NamedValueError(f"{field}[{shown(name)}]", f"is not known; known names: {known}")
        place = f"{field}[{name}]"
        if name in found:
            raise NamedValueError(place, "is given twice")
        kind = message.value.WhichOneof("kind")
        value = getattr(message.value, str(kind)) if kind in _FIELDS.values() else None
        if reason := mismatch_reason(value, expected):
            raise NamedValueError(place, reason)
        found[name] = cast("Scalar", value)
    return found

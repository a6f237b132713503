"""Messages of the service as plain data, for --json."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from lazyfx.cli.report_tables import date_text


def as_json(value: object) -> str:
    """Plain data as indented JSON text."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def plain(message: Message) -> Any:
    """A message as dicts and lists, with every field.

    Numbers stay numbers (protobuf's own JSON turns 64-bit ones into strings), enums become
    lower-case names without their prefix, bytes hex, times ISO 8601, durations seconds.
    """
    if isinstance(message, Timestamp):
        return date_text(message)
    if isinstance(message, Duration):
        return message.ToNanoseconds() / 1e9
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


# Descriptors have different classes in the Python and the compiled runtime, hence Any.
def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_value(item, field) for item in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _value(value, field)


def _value(value: Any, field: Any) -> Any:
    if isinstance(value, Message):
        return plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else _enum_name(known.name, field.enum_type.name)
    return value.hex() if isinstance(value, bytes) else value


def _enum_name(value: str, enum: str) -> str:
    # MISS_REASON_NEW_GRAPH of MissReason -> new_graph
    words = sum(letter.isupper() for letter in enum)
    return "_".join(value.split("_")[words:]).lower()

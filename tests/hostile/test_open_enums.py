"""Enums of proto3 are open: a number without a name is refused wherever the format has an enum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from lazyfx.errors import DecodeError
from lazyfx.v1 import graph_pb2 as pb
from lazyfx_server.security.checked_graph import check

_GOLDEN = Path(__file__).parents[1] / "golden"
# Of each field: more are alike.
_PLACES = 6
_NAMELESS = (99, -1)


def _enums(message: Message) -> Iterator[tuple[Message, Any]]:
    """Every field of an enum's type inside a message, also those that are not set."""
    for field, value in message.ListFields():
        if field.message_type:
            for part in value if field.is_repeated else (value,):
                yield from _enums(part)
    for field in message.DESCRIPTOR.fields:
        other = field.containing_oneof and message.WhichOneof(field.containing_oneof.name)
        if field.enum_type and (not field.containing_oneof or other == field.name):
            yield message, field


def test_a_number_without_a_name_is_refused() -> None:
    met: Counter[str] = Counter()
    for path in sorted(_GOLDEN.glob("torch-2.13/*.lazyfx")):
        body = pb.GraphBody.FromString(pb.Graph.FromString(path.read_bytes()).body)
        for message, field in list(_enums(body)):
            met[field.full_name] += 1
            if met[field.full_name] > _PLACES:
                continue
            before = getattr(message, field.name)
            for number in _NAMELESS:
                setattr(message, field.name, number)
                with pytest.raises(DecodeError):
                    check(body.SerializeToString(deterministic=True))
            setattr(message, field.name, before)
    described = {"TensorDescription.dtype", "TensorDescription.layout", "Call.opcode"}
    assert {f"lazyfx.v1.{name}" for name in described} <= met.keys()
    assert len(met) >= 9

"""Arguments that mean the same in any message: numbers, None, dtypes."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch

from lazyfx.errors import DecodeError, UnsupportedGraphError
from lazyfx.shared.wire.arguments.argument_kind import (
    ArgumentKind,
    CheckingTables,
    Key,
    Read,
    WritingTables,
    unknown,
)
from lazyfx.shared.wire.format import (
    DTYPES,
    LAYOUTS,
    MAX_INT64,
    MEMORY_FORMATS,
    MIN_INT64,
    QUIET_NAN_BITS,
)
from lazyfx.shared.wire.values.exact_literals import (
    ExactComplex,
    ParenthesizedFloat,
    ParenthesizedInt,
    exact_complex,
)
from lazyfx.shared.wire.values.symbolic import float_key
from lazyfx.v1 import graph_pb2 as pb


def canonical_float(value: float) -> float:
    """The same number; any NaN becomes the quiet NaN."""
    return float("nan") if float_key(value)[0] == float_key(float("nan"))[0] else value


def check_float(value: float, field: str) -> None:
    """Refuse every NaN but the quiet one."""
    if math.isnan(value) and struct.unpack("<Q", struct.pack("<d", value))[0] != QUIET_NAN_BITS:
        raise DecodeError("a NaN that is not the quiet NaN", field=field)


def by_value(value: Any, key: Key, *_: object) -> None:
    """The way into keys of values that are equal to none of another kind."""
    key.append(value)


def _singleton(field: str, value: object) -> ArgumentKind:
    return ArgumentKind(
        field,
        (type(value),),
        walk=by_value,
        write=lambda _, message, __: getattr(message, field).SetInParent(),
        read=lambda *_: value,
    )


def _walk_boolean(value: bool, key: Key, *_: object) -> None:
    key += bool, value


def _write_boolean(value: bool, message: pb.Argument, _: WritingTables) -> None:
    message.boolean = value


def _walk_integer(value: int, key: Key, *_: object) -> None:
    key += int, int(value)


def _write_integer(value: int, message: pb.Argument, _: WritingTables) -> None:
    if not MIN_INT64 <= value <= MAX_INT64:
        raise UnsupportedGraphError(
            "an integer that does not fit into 64 bits", remedy="pass it as a float or a tensor"
        )
    message.integer = value


def _walk_floating(value: float, key: Key, *_: object) -> None:
    key += float, float_key(float(value))


def _write_floating(value: float, message: pb.Argument, _: WritingTables) -> None:
    message.floating = canonical_float(value)


def _walk_complex(value: complex, key: Key, *_: object) -> None:
    key += complex, float_key(value.real), float_key(value.imag)


def _write_complex(value: complex, message: pb.Argument, _: WritingTables) -> None:
    message.complex.SetInParent()
    message.complex.real = canonical_float(value.real)
    message.complex.imaginary = canonical_float(value.imag)


def _check_complex(message: pb.Argument, _: CheckingTables, field: str, __: int) -> None:
    check_float(message.complex.real, field)
    check_float(message.complex.imaginary, field)


def _plain(field: str) -> Read:
    value = attrgetter(field)
    return lambda message, *_: value(message)


def _enum(field: str, python_type: type, numbers: Mapping[Any, int]) -> ArgumentKind:
    """An enum of torch, of which this torch or the format may lack values."""
    values = {number: value for value, number in numbers.items()}
    number_of = attrgetter(field)

    def write(value: Any, message: pb.Argument, _: WritingTables) -> None:
        if value not in numbers:
            raise UnsupportedGraphError(f"the format does not support the {field} {value}")
        setattr(message, field, numbers[value])

    def read(message: pb.Argument, *_: object) -> Any:
        value = values.get(number_of(message))
        if value is None:
            raise unknown(field)
        return value

    def check(message: pb.Argument, _: CheckingTables, place: str, __: int) -> None:
        if not number_of(message):
            raise DecodeError(f"an unspecified {field}", field=place)

    return ArgumentKind(field, (python_type,), by_value, write, read, check)


SCALARS = (
    _singleton("none", None),
    _singleton("ellipsis", ...),
    ArgumentKind("boolean", (bool,), _walk_boolean, _write_boolean, _plain("boolean")),
    ArgumentKind(
        "integer", (int, ParenthesizedInt), _walk_integer, _write_integer, _plain("integer")
    ),
    ArgumentKind(
        "floating",
        (float, ParenthesizedFloat),
        _walk_floating,
        _write_floating,
        _plain("floating"),
        check=lambda message, _, field, __: check_float(message.floating, field),
    ),
    ArgumentKind(
        "complex",
        (complex, ExactComplex),
        _walk_complex,
        _write_complex,
        lambda message, *_: exact_complex(message.complex.real, message.complex.imaginary),
        _check_complex,
    ),
    _enum("dtype", torch.dtype, DTYPES),
    _enum("layout", torch.layout, LAYOUTS),
    _enum("memory_format", torch.memory_format, MEMORY_FORMATS),
)

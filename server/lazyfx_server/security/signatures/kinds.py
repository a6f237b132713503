"""Checks whether an argument can have the type that a signature or schema gives it.

Types are written as in Python: "int | list[int] | None". The value of a hole (an operand) or of a
symbolic number is not known here and fits every type; torch checks it at run time.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from lazyfx.shared.wire.format import DEVICE_TYPES
from lazyfx.v1 import graph_pb2

Argument: TypeAlias = graph_pb2.Argument
Fits: TypeAlias = Callable[[Argument, Sequence[str]], bool]
"""Whether an argument can have a type, given the strings of its message."""

_HOLES = frozenset({"operand", "expression"})
_NUMBERS = frozenset({"boolean", "integer", "floating", "complex"})
_ENUMS = frozenset({"dtype", "layout", "memory_format"})
_SEQUENCES = frozenset({"list", "tuple", "size"})
# Strings that torch accepts as a device, in addition to those with an index.
_DEVICES = frozenset(DEVICE_TYPES)

_PLAIN: Final[dict[str, frozenset[str]]] = {
    # torch converts numbers to tensors.
    "Tensor": _NUMBERS,
    "Number": _NUMBERS,
    "int": frozenset({"boolean", "integer"}),
    "float": frozenset({"boolean", "integer", "floating"}),
    "bool": frozenset({"boolean", "integer"}),
    "str": frozenset({"text", "device_text", "process_group"}),
    "dtype": frozenset({"dtype"}),
    "layout": frozenset({"layout"}),
    "memory_format": frozenset({"memory_format"}),
    "Callable": frozenset({"target"}),
    "None": frozenset({"none"}),
    # Values that cannot be literals: a generator, a stream, a storage.
    "Never": frozenset(),
    # The object of a method call.
    "Self": frozenset(),
    "Container": frozenset(),
    # Operators in captures take enums where their schemas say int.
    "Enum": _ENUMS,
}
_ANYTHING = _NUMBERS | _ENUMS | {"none", "ellipsis", "device"}
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_]{0,40}", re.ASCII)
_WRAPPED = re.compile(r"(Optional|List)\[(.*)\]")
# Types of torch's schemas that have another name here.
_SCHEMA_TYPES = {
    "number": "Number", "complex": "Number", "int": "int | Enum", "float": "float",
    "bool": "bool", "str": "str", "Tensor": "Tensor", "Device": "Device",
    "ScalarType": "dtype", "Layout": "layout", "MemoryFormat": "memory_format",
    "QScheme": "Never", "Generator": "Never", "Stream": "Never", "Storage": "Never",
}  # fmt: skip


def written_type(schema_type: str) -> str | None:
    """A type of a torch schema in our notation; None if only torch knows it."""
    wrapped = _WRAPPED.fullmatch(schema_type)
    if wrapped is None:
        return _SCHEMA_TYPES.get(schema_type)
    inner = written_type(wrapped[2])
    if inner is None:
        return None
    return f"{inner} | None" if wrapped[1] == "Optional" else f"list[{inner}]"


@functools.lru_cache(maxsize=1024)
def fits_type(written: str) -> Fits:
    """A check of whether an argument can have a type.

    Raises:
        ValueError: It is not a type.
    """
    try:
        expression = ast.parse(written, mode="eval").body
    except SyntaxError:
        raise ValueError(f"{written!r} is not a type") from None
    return _compiled(expression)


def _compiled(expression: ast.expr) -> Fits:
    if isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.BitOr):
        return _either(_compiled(expression.left), _compiled(expression.right))
    if isinstance(expression, ast.Subscript) and ast.unparse(expression.value) == "list":
        return _list_of(_compiled(expression.slice))
    name = ast.unparse(expression)
    special = {"Any": fits_anything, "Device": _fits_device, "dict": _fits_dictionary}
    if name in special:
        return special[name]
    if name not in _PLAIN:
        raise ValueError(f"{name!r} is not an argument type")
    if name == "Container":
        return _is_container
    allowed = _PLAIN[name] | _HOLES
    return lambda argument, _strings: argument.WhichOneof("kind") in allowed


def _either(left: Fits, right: Fits) -> Fits:
    return lambda argument, strings: left(argument, strings) or right(argument, strings)


def _list_of(inner: Fits) -> Fits:
    def fits_list(argument: Argument, strings: Sequence[str]) -> bool:
        kind = argument.WhichOneof("kind")
        if kind in _SEQUENCES:
            items: Sequence[Argument] = getattr(argument, str(kind)).items
            return all(inner(item, strings) for item in items)
        # One number may stand for a list of equal ones, as in a kernel size.
        return inner(argument, strings)

    return fits_list


def _fits_device(argument: Argument, strings: Sequence[str]) -> bool:
    kind = argument.WhichOneof("kind")
    if kind == "text":
        return strings[argument.text] in _DEVICES
    # A number is a device index.
    return kind in ("device", "device_text", "integer") or kind in _HOLES


def _is_container(argument: Argument, strings: Sequence[str]) -> bool:
    kind = argument.WhichOneof("kind")
    return kind in _HOLES or (
        (kind in _SEQUENCES or kind == "dictionary") and _fits_deep(argument, strings)
    )


def fits_anything(argument: Argument, strings: Sequence[str]) -> bool:
    """Whether an argument is a literal but no string or callable; for untyped parameters."""
    kind = argument.WhichOneof("kind")
    if kind in _ANYTHING or kind in _HOLES:
        return True
    return _fits_deep(argument, strings)


def _fits_dictionary(argument: Argument, strings: Sequence[str]) -> bool:
    """Options by name; strings must be plain words, since compilers write them to kernels."""
    kind = argument.WhichOneof("kind")
    if kind != "dictionary":
        return kind in _HOLES
    values = [row.value for row in argument.dictionary.entries]
    return all(_is_plain_word(v, strings) or fits_anything(v, strings) for v in values)


def _is_plain_word(argument: Argument, strings: Sequence[str]) -> bool:
    return argument.WhichOneof("kind") == "text" and bool(
        _PLAIN_WORD.fullmatch(strings[argument.text])
    )


def _fits_deep(argument: Argument, strings: Sequence[str]) -> bool:
    kind = argument.WhichOneof("kind")
    if kind in _SEQUENCES:
        return all(fits_anything(item, strings) for item in getattr(argument, str(kind)).items)
    if kind == "dictionary":
        # Keys are often names; the format allows only scalars there.
        return all(fits_anything(row.value, strings) for row in argument.dictionary.entries)
    if kind == "slice":
        row = argument.slice
        return all(fits_anything(part, strings) for part in (row.start, row.stop, row.step))
    return False

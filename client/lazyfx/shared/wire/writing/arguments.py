"""Arguments of calls on the way out: keys that tell templates apart, and messages.

A key is a flat tuple of types and values, cheap to build and to look up; the
message of a template is built only the first time that its key appears.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.fx import Node

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.wire.format import (
    DEVICE_TEXT,
    DTYPES,
    LAYOUTS,
    MAX_DEPTH,
    MAX_INT64,
    MEMORY_FORMATS,
    MIN_INT64,
)
from lazyfx.shared.wire.process_groups import GroupName
from lazyfx.shared.wire.targets import allow_table, unknown_targets
from lazyfx.shared.wire.values import exact_literals, symbols
from lazyfx.shared.wire.values.symbolic import float_key
from lazyfx.shared.wire.writing.message_tables import Tables, canonical_float
from lazyfx.v1 import graph_pb2 as pb

_HOLE = Node
_CLOSE = object()
_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_LISTS = frozenset({list, torch.fx.immutable_collections.immutable_list})
_DICTS = frozenset({dict, torch.fx.immutable_collections.immutable_dict})
# What stands in keys before, or for, the index of a row, and before what depends on the target.
_OPEN = frozenset({torch.SymInt, torch.SymFloat, torch.SymBool, Callable, GroupName, dict})
_NAMED = frozenset({str, torch.device})
# Values whose hash and equality are their identity, so that they key themselves.
_PLAIN = frozenset({torch.dtype, torch.layout, torch.memory_format, type(None), type(...)})


def walk_items(
    items: Iterable[Any], key: list[Any], holes: list[Node], tables: Tables, depth: int = 0
) -> None:
    """`walk` for each of some arguments; the commonest types are met here, without a call."""
    for item in items:
        kind = type(item)
        if kind is Node:
            key.append(_HOLE)
            holes.append(item)
        elif kind is int or kind is bool:
            key.append(kind)
            key.append(item)
        else:
            walk(item, key, holes, tables, depth)


def walk(argument: Any, key: list[Any], holes: list[Node], tables: Tables, depth: int = 0) -> None:
    """Append what tells this argument from others to `key`, and its nodes to `holes`."""
    kind = type(argument)
    if kind is Node:
        key.append(_HOLE)
        holes.append(argument)
    elif kind is int or kind is bool:
        key.append(kind)
        key.append(argument)
    elif kind in _LISTS or kind is tuple or kind is torch.Size:
        if depth >= MAX_DEPTH:
            raise UnsupportedGraphError("an argument is nested too deeply")
        key.append(list if kind in _LISTS else kind)
        walk_items(argument, key, holes, tables, depth + 1)
        key.append(_CLOSE)
    elif kind in _PLAIN:
        key.append(argument)
    elif kind is str:
        if ":" in argument and DEVICE_TEXT.match(argument):
            key.append(DEVICE_TEXT)
        key.append(argument)
    elif kind is float:
        key.append(float)
        key.append(float_key(argument))
    else:
        _walk_rare(argument, key, holes, tables, depth)


def _walk_rare(  # noqa: C901 - one branch a kind
    argument: Any, key: list[Any], holes: list[Node], tables: Tables, depth: int
) -> None:
    argument = exact_literals.plain(argument)
    kind = type(argument)
    if depth >= MAX_DEPTH:
        raise UnsupportedGraphError("an argument is nested too deeply")
    if kind is int or kind is float:
        walk(argument, key, holes, tables, depth)
    elif kind is slice:
        key.append(slice)
        for part in (argument.start, argument.stop, argument.step):
            walk(part, key, holes, tables, depth + 1)
    elif kind in _DICTS:
        key.append(dict)
        for name in _keys(argument, sort=bool(key) and tables.sorts_dictionaries(key[0])):
            key.append(type(name))
            key.append(name)
            walk(argument[name], key, holes, tables, depth + 1)
        key.append(_CLOSE)
    elif kind is torch.device:
        key.append(argument)
    elif kind is complex:
        key.append(complex)
        key.append(float_key(argument.real))
        key.append(float_key(argument.imag))
    elif kind is GroupName:
        key.append(GroupName)
        key.append(tables.groups.number(argument))
    elif isinstance(argument, _SYMBOLIC):
        _walk_symbolic(argument, key, tables)
    elif isinstance(argument, Node):
        key.append(_HOLE)
        holes.append(argument)
    elif callable(argument) and (name := allow_table.name_of(argument)) is not None:
        # Its row comes behind that of the method that is called.
        key.append(Callable)
        key.append(name)
    else:
        raise _refuse(argument)


def _walk_symbolic(
    argument: torch.SymInt | torch.SymFloat | torch.SymBool, key: list[Any], tables: Tables
) -> None:
    known = symbols.constant(argument)
    if known is None:
        key.append(type(argument))
        key.append(tables.expressions.scalar(argument))
    else:
        walk(known, key, [], tables)


def is_closed(key: Iterable[object]) -> bool:
    """Whether the message of a key has no index of any table in it, and no dictionary."""
    return not any(type(part) in _NAMED or part in _OPEN for part in key)


def _keys(dictionary: dict[Any, Any], *, sort: bool) -> list[Any]:
    """Keys in canonical order (booleans, then integers, then strings), or in their own.

    Raises:
        UnsupportedGraphError: A key of another type.
    """
    ranks = {bool: 0, int: 1, str: 2}
    for name in dictionary:
        if type(name) not in ranks:
            raise UnsupportedGraphError(
                f"a dictionary key of type {type(name).__name__}",
                remedy="use strings, integers or booleans as keys",
            )
    return sorted(dictionary, key=lambda name: (ranks[type(name)], name)) if sort else [*dictionary]


def _refuse(argument: object) -> UnsupportedGraphError:
    kind = type(argument)
    label = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(argument, torch.Generator):
        remedy = "leave the generator out and seed the default one"
    elif isinstance(argument, tuple):
        remedy = "pass a plain tuple"
    elif isinstance(argument, torch.Tensor):
        remedy = "pass the tensor as an input, or register it as a buffer and read it by get_attr"
    elif callable(argument):
        return unknown_targets.unknown_target_error(argument)
    else:
        remedy = "pass numbers, strings, torch dtypes, devices, or tuples, lists and dicts of these"
    return UnsupportedGraphError(f"an argument of type {label}", remedy=remedy)


def write(argument: Any, message: pb.Argument, tables: Tables) -> None:
    """Fill `message` with an argument that `walk` has accepted; a node becomes a hole."""
    kind = type(argument)
    writer = _WRITERS.get(kind)
    if writer is not None:
        writer(argument, message, tables)
    elif isinstance(argument, Node):
        message.operand.SetInParent()
    elif isinstance(argument, _SYMBOLIC):
        known = symbols.constant(argument)
        if known is None:
            message.expression = tables.expressions.scalar(argument)
        else:
            write(known, message, tables)
    elif callable(argument):
        message.target = tables.target(argument)
    else:
        raise _refuse(argument)


def _write_text(argument: str, message: pb.Argument, tables: Tables) -> None:
    if tables.spelling and ":" in argument and DEVICE_TEXT.match(argument):
        message.device_text = tables.device(torch.device(argument))
    else:
        message.text = tables.text(argument)


def _write_integer(argument: int, message: pb.Argument, _: Tables) -> None:
    if not MIN_INT64 <= argument <= MAX_INT64:
        raise UnsupportedGraphError(
            "an integer that does not fit into 64 bits", remedy="pass it as a float or a tensor"
        )
    message.integer = argument


def _write_items(items: Any, message: pb.ArgumentList, tables: Tables) -> None:
    message.SetInParent()
    for item in items:
        write(item, message.items.add(), tables)


def _write_dictionary(argument: Any, message: pb.Argument, tables: Tables) -> None:
    message.dictionary.SetInParent()
    for name in _keys(argument, sort=tables.sorting):
        entry = message.dictionary.entries.add()
        if type(name) is str:
            entry.key.text = tables.text(name)
        else:
            write(name, entry.key, tables)
        write(argument[name], entry.value, tables)


def _write_slice(argument: slice, message: pb.Argument, tables: Tables) -> None:
    write(argument.start, message.slice.start, tables)
    write(argument.stop, message.slice.stop, tables)
    write(argument.step, message.slice.step, tables)


def _write_complex(argument: complex, message: pb.Argument, _: Tables) -> None:
    message.complex.SetInParent()
    message.complex.real = canonical_float(argument.real)
    message.complex.imaginary = canonical_float(argument.imag)


def _setter(field: str, convert: Callable[[Any, Tables], Any]) -> Callable[..., None]:
    def set_field(argument: Any, message: pb.Argument, tables: Tables) -> None:
        setattr(message, field, convert(argument, tables))

    return set_field


def _lister(field: str) -> Callable[..., None]:
    read = operator.attrgetter(field)

    def write_list(argument: Any, message: pb.Argument, tables: Tables) -> None:
        _write_items(argument, read(message), tables)

    return write_list


def _known_dtype(argument: torch.dtype, _: Tables) -> int:
    if argument not in DTYPES:
        raise UnsupportedGraphError(f"the format does not support the dtype {argument}")
    return DTYPES[argument]


def _known_layout(argument: torch.layout, _: Tables) -> int:
    if argument not in LAYOUTS:
        raise UnsupportedGraphError(f"the format does not support the layout {argument}")
    return LAYOUTS[argument]


def _empty(field: str) -> Callable[..., None]:
    read = operator.attrgetter(field)

    def choose(_: Any, message: pb.Argument, __: Tables) -> None:
        read(message).SetInParent()

    return choose


_WRITERS: dict[type, Callable[[Any, pb.Argument, Tables], None]] = {
    Node: _empty("operand"),
    type(None): _empty("none"),
    type(...): _empty("ellipsis"),
    bool: _setter("boolean", lambda argument, _: argument),
    int: _write_integer,
    float: _setter("floating", lambda argument, _: canonical_float(argument)),
    str: _write_text,
    GroupName: _setter("process_group", lambda argument, tables: tables.groups.number(argument)),
    tuple: _lister("tuple"),
    torch.Size: _lister("size"),
    **dict.fromkeys(_LISTS, _lister("list")),
    **dict.fromkeys(_DICTS, _write_dictionary),
    slice: _write_slice,
    complex: _write_complex,
    exact_literals.ParenthesizedInt: _write_integer,
    exact_literals.ParenthesizedFloat: _setter("floating", lambda value, _: canonical_float(value)),
    exact_literals.ExactComplex: _write_complex,
    torch.dtype: _setter("dtype", _known_dtype),
    torch.device: _setter("device", lambda argument, tables: tables.device(argument)),
    torch.layout: _setter("layout", _known_layout),
    torch.memory_format: _setter("memory_format", lambda argument, _: MEMORY_FORMATS[argument]),
}

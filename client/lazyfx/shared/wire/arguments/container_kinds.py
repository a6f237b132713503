"""Arguments that hold arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch.fx import Node
from torch.fx.immutable_collections import immutable_dict, immutable_list

from lazyfx.errors import DecodeError, UnsupportedGraphError
from lazyfx.shared.wire.arguments.argument_kind import (
    ArgumentKind,
    CheckingTables,
    Key,
    ReadingTables,
    WritingTables,
    check,
    children,
    read,
    walk,
    walk_items,
    write,
)
from lazyfx.shared.wire.arguments.filling import Holes, sequence
from lazyfx.shared.wire.format import MAX_DEPTH
from lazyfx.v1 import graph_pb2 as pb

_CLOSE = object()
# Keys of dictionaries, in canonical order.
_TYPE_RANKS: dict[type, int] = {bool: 0, int: 1, str: 2}
_FIELD_RANKS = {"boolean": 0, "integer": 1, "text": 2}


def _require_walkable(depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise UnsupportedGraphError("an argument is nested too deeply")


def _read_children(
    message: pb.Argument, tables: ReadingTables, holes: Holes, depth: int
) -> list[Any]:
    if depth >= MAX_DEPTH:
        raise DecodeError("arguments are nested too deeply")
    return [read(part, tables, holes, depth + 1) for part in children(message)]


def _check_children(message: pb.Argument, tables: CheckingTables, field: str, depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise DecodeError("nested too deeply", field=field)
    return sum(check(part, tables, field, depth + 1) for part in children(message))


def _check_size(message: pb.Argument, tables: CheckingTables, field: str, depth: int) -> int:
    if tables.in_call:  # torch.fx makes tuples of them
        raise DecodeError("sizes must be encoded as tuples", field=field)
    return _check_children(message, tables, field, depth)


def _sequence(
    field: str, types: tuple[type, ...], make: Callable[[list[Any]], Any]
) -> ArgumentKind:
    row_of = attrgetter(field)

    def walk_sequence(
        value: Any, key: Key, holes: list[Node], tables: WritingTables, depth: int
    ) -> None:
        _require_walkable(depth)
        key.append(types[0])
        walk_items(value, key, holes, tables, depth + 1)
        key.append(_CLOSE)

    def write_sequence(value: Any, message: pb.Argument, tables: WritingTables) -> None:
        row = row_of(message)
        row.SetInParent()
        for item in value:
            write(item, row.items.add(), tables)

    return ArgumentKind(
        field,
        types,
        walk_sequence,
        write_sequence,
        lambda *row: sequence(_read_children(*row), make),
        _check_size if field == "size" else _check_children,
        lambda message: row_of(message).items,
    )


def _walk_slice(
    value: slice, key: Key, holes: list[Node], tables: WritingTables, depth: int
) -> None:
    _require_walkable(depth)
    key.append(slice)
    walk_items((value.start, value.stop, value.step), key, holes, tables, depth + 1)


def _write_slice(value: slice, message: pb.Argument, tables: WritingTables) -> None:
    write(value.start, message.slice.start, tables)
    write(value.stop, message.slice.stop, tables)
    write(value.step, message.slice.step, tables)


def _walk_dictionary(
    value: dict[Any, Any], key: Key, holes: list[Node], tables: WritingTables, depth: int
) -> None:
    _require_walkable(depth)
    key.append(dict)
    for name in _ordered(value, sort=bool(key) and tables.sorts_dictionaries(key[0])):
        key += type(name), name
        walk(value[name], key, holes, tables, depth + 1)
    key.append(_CLOSE)


def _write_dictionary(value: dict[Any, Any], message: pb.Argument, tables: WritingTables) -> None:
    message.dictionary.SetInParent()
    for name in _ordered(value, sort=tables.sorting):
        entry = message.dictionary.entries.add()
        if type(name) is str:  # never a device
            entry.key.text = tables.text(name)
        else:
            write(name, entry.key, tables)
        write(value[name], entry.value, tables)


def _ordered(dictionary: dict[Any, Any], *, sort: bool) -> list[Any]:
    """Keys in canonical order, or in their own.

    Raises:
        UnsupportedGraphError: A key of another type.
    """
    for name in dictionary:
        if type(name) not in _TYPE_RANKS:
            raise UnsupportedGraphError(
                f"a dictionary key of type {type(name).__name__}",
                remedy="use strings, integers or booleans as keys",
            )
    names = [*dictionary]
    return sorted(names, key=lambda name: (_TYPE_RANKS[type(name)], name)) if sort else names


def _read_dictionary(message: pb.Argument, tables: ReadingTables, holes: Holes, depth: int) -> Any:
    if any(row.key.WhichOneof("kind") not in _FIELD_RANKS for row in message.dictionary.entries):
        raise DecodeError("a dictionary key is neither text, integer nor boolean")
    parts = _read_children(message, tables, holes, depth)
    keys = parts[::2]
    if len(set(keys)) != len(keys):
        raise DecodeError("a dictionary key is given twice")
    return sequence(parts[1::2], lambda items: immutable_dict(zip(keys, items, strict=True)))


def _check_dictionary(message: pb.Argument, tables: CheckingTables, field: str, depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise DecodeError("nested too deeply", field=field)
    holes = 0
    keys: list[tuple[int, Any]] = []
    for entry in message.dictionary.entries:
        kind = entry.key.WhichOneof("kind")
        if kind not in _FIELD_RANKS:
            raise DecodeError("a key that is not text, an integer or a boolean", field=field)
        name = getattr(entry.key, kind)
        keys.append((_FIELD_RANKS[kind], tables.text(name) if kind == "text" else name))
        holes += check(entry.value, tables, field, depth + 1)
    if len({name for _, name in keys}) != len(keys):
        raise DecodeError("a duplicate key", field=field)
    if tables.sorts and keys != sorted(keys):
        raise DecodeError("not sorted by key", field=field)
    return holes


def _entries(message: pb.Argument) -> Sequence[pb.Argument]:
    return [part for row in message.dictionary.entries for part in (row.key, row.value)]


CONTAINERS = (
    _sequence("list", (list, immutable_list), immutable_list),
    _sequence("tuple", (tuple,), tuple),
    _sequence("size", (torch.Size,), torch.Size),
    ArgumentKind(
        "slice",
        (slice,),
        _walk_slice,
        _write_slice,
        lambda *row: sequence(_read_children(*row), lambda items: slice(*items)),
        _check_children,
        lambda message: (message.slice.start, message.slice.stop, message.slice.step),
    ),
    ArgumentKind(
        "dictionary",
        (dict, immutable_dict),
        _walk_dictionary,
        _write_dictionary,
        _read_dictionary,
        _check_dictionary,
        _entries,
        open_keys=(dict,),
    ),
)

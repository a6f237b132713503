"""What there is to know of one kind of argument, and the way to the kind of an argument.

A key is a flat list of types and values, cheap to build and to look up, that tells templates of
calls apart; the message of a template is built only the first time that its key appears.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch.fx import Node

from lazyfx.errors import DecodeError, UnsupportedGraphError
from lazyfx.shared.wire.arguments.filling import Holes
from lazyfx.shared.wire.process_groups import Groups
from lazyfx.shared.wire.targets import allow_table, unknown_targets
from lazyfx.shared.wire.values.symbolic import ExpressionWriter
from lazyfx.v1 import graph_pb2 as pb

Key: TypeAlias = list[Any]


class WritingTables(Protocol):
    """Tables of a message under construction; see `message_tables.Tables`."""

    expressions: ExpressionWriter
    groups: Groups
    sorting: bool
    spelling: bool

    def text(self, value: str) -> int: ...  # noqa: D102
    def target(self, target: Any) -> int: ...  # noqa: D102
    def device(self, device: torch.device) -> int: ...  # noqa: D102
    def sorts_dictionaries(self, target: int | str) -> bool: ...  # noqa: D102


class ReadingTables(Protocol):
    """Tables of a message that is read; see `templates.TemplateReader`."""

    def text(self, index: int) -> str: ...  # noqa: D102
    def target(self, index: int) -> Any: ...  # noqa: D102
    def device(self, index: int) -> torch.device: ...  # noqa: D102
    def process_group(self, number: int) -> str: ...  # noqa: D102
    def expression(self, index: int) -> Any: ...  # noqa: D102


class CheckingTables(Protocol):
    """Tables of a message whose form is checked; see `argument_rules.ArgumentChecker`."""

    sorts: bool
    spells: bool
    in_call: bool

    def text(self, index: int) -> str: ...  # noqa: D102
    def use_target(self, index: int) -> None: ...  # noqa: D102
    def use_device(self, index: int) -> int: ...  # noqa: D102
    def use_expression(self, index: int, field: str) -> None: ...  # noqa: D102
    def use_group(self, number: int, field: str) -> None: ...  # noqa: D102


Walk: TypeAlias = Callable[[Any, Key, list[Node], WritingTables, int], None]
Write: TypeAlias = Callable[[Any, pb.Argument, WritingTables], None]
Read: TypeAlias = Callable[[pb.Argument, ReadingTables, Holes, int], Any]
Check: TypeAlias = Callable[[pb.Argument, CheckingTables, str, int], "int | None"]


@dataclass(frozen=True)
class ArgumentKind:
    """One kind of argument, in Python and in the message `Argument`.

    Attributes:
        field: Its field in the message.
        types: The Python types whose values are written as it.
        walk: Appends what tells a value from others to a key, and its nodes to the holes.
        write: Fills a message with a value that `walk` has accepted; a node becomes a hole.
        read: The value that a message stands for, or a `Part` where operands go in.
        check: Checks that a message is in canonical form; the number of its holes.
        children: The arguments inside a message.
        names: The table that its field is an index of, if any: "strings", "devices" or "other".
        open_keys: What stands in keys of it, as a value or as the type of one, if its message
            depends on more than the key: on the tables of its message, or on what is called.
    """

    field: str
    types: tuple[type, ...]
    walk: Walk
    write: Write
    read: Read
    check: Check = lambda *_: None
    children: Callable[[pb.Argument], Sequence[pb.Argument]] = lambda _: ()
    names: str = ""
    open_keys: tuple[object, ...] = ()


KINDS: dict[str, ArgumentKind] = {}
"""Every kind by its field."""
_WALKS: dict[type, Walk] = {}
_WRITES: dict[type, Write] = {}
_READS: dict[str | None, Read] = {}
_CHECKS: dict[str | None, Check] = {}
_OPEN_KEYS: set[object] = set()


def register(kinds: Iterable[ArgumentKind]) -> None:
    """Add kinds to the tables."""
    for kind in kinds:
        KINDS[kind.field] = kind
        _READS[kind.field] = kind.read
        _CHECKS[kind.field] = kind.check
        _OPEN_KEYS.update(kind.open_keys)
        _WALKS.update(dict.fromkeys(kind.types, kind.walk))
        _WRITES.update(dict.fromkeys(kind.types, kind.write))


def walk_items(
    items: Iterable[Any], key: Key, holes: list[Node], tables: WritingTables, depth: int = 0
) -> None:
    """`walk` for each of some arguments; the commonest types are met here, without a call."""
    for item in items:
        kind = type(item)
        if kind is Node:
            key.append(Node)
            holes.append(item)
        elif kind is int or kind is bool:
            key.append(kind)
            key.append(item)
        else:
            (_WALKS.get(kind) or _kind_of(item).walk)(item, key, holes, tables, depth)


def walk(argument: Any, key: Key, holes: list[Node], tables: WritingTables, depth: int = 0) -> None:
    """Append what tells this argument from others to `key`, and its nodes to `holes`.

    Raises:
        UnsupportedGraphError: The format does not support it.
    """
    (_WALKS.get(type(argument)) or _kind_of(argument).walk)(argument, key, holes, tables, depth)


def write(argument: Any, message: pb.Argument, tables: WritingTables) -> None:
    """Fill `message` with an argument that `walk` has accepted; a node becomes a hole."""
    (_WRITES.get(type(argument)) or _kind_of(argument).write)(argument, message, tables)


def read(message: pb.Argument, tables: ReadingTables, holes: Holes, depth: int = 0) -> Any:
    """A literal as it is, or a `Part` where operands go in.

    Raises:
        DecodeError: It has no kind, or one of its rows is not there.
    """
    kind = _READS.get(message.WhichOneof("kind"))
    if kind is None:
        raise unknown(None)
    return kind(message, tables, holes, depth)


def check(message: pb.Argument, tables: CheckingTables, field: str, depth: int = 0) -> int:
    """Check that an argument is in canonical form; the number of its holes.

    Raises:
        DecodeError: It is not.
    """
    kind = _CHECKS.get(message.WhichOneof("kind"))
    if kind is None:
        raise DecodeError("an argument without a kind", field=field)
    return kind(message, tables, field, depth) or 0


def children(message: pb.Argument) -> Sequence[pb.Argument]:
    """The arguments inside an argument, keys of dictionaries included."""
    kind = KINDS.get(message.WhichOneof("kind") or "")
    return kind.children(message) if kind is not None else ()


def is_closed(key: Iterable[Any]) -> bool:
    """Whether the message of a key has no index of any table in it, and no dictionary."""
    return not any(part in _OPEN_KEYS or type(part) in _OPEN_KEYS for part in key)


def unknown(kind: str | None) -> DecodeError:
    """The error for an argument that this version or this torch cannot read."""
    return DecodeError(f"an argument of unknown kind or value ({kind})")


def _kind_of(argument: Any) -> ArgumentKind:
    """The kind of a value whose type alone does not tell."""
    if isinstance(argument, Node):
        return KINDS["operand"]
    if callable(argument) and allow_table.name_of(argument) is not None:
        return KINDS["target"]
    raise _refuse(argument)


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

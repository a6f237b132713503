"""Arguments that name something outside of them: an operand, or a row of a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.arguments.argument_kind import (
    ArgumentKind,
    CheckingTables,
    Key,
    ReadingTables,
    WritingTables,
    walk,
    write,
)
from lazyfx.shared.wire.arguments.scalar_kinds import by_value
from lazyfx.shared.wire.format import DEVICE_TEXT
from lazyfx.shared.wire.process_groups import GroupName
from lazyfx.shared.wire.targets import allow_table
from lazyfx.shared.wire.values import symbols
from lazyfx.v1 import graph_pb2 as pb

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def _walk_node(value: Node, key: Key, holes: list[Node], *_: object) -> None:
    key.append(Node)
    holes.append(value)


def _write_node(_: Node, message: pb.Argument, __: WritingTables) -> None:
    message.operand.SetInParent()


def _walk_text(value: str, key: Key, *_: object) -> None:
    if ":" in value and DEVICE_TEXT.match(value):
        key.append(DEVICE_TEXT)
    key.append(value)


def _write_text(value: str, message: pb.Argument, tables: WritingTables) -> None:
    if tables.spelling and ":" in value and DEVICE_TEXT.match(value):
        message.device_text = tables.device(torch.device(value))
    else:
        message.text = tables.text(value)


def _check_text(message: pb.Argument, tables: CheckingTables, field: str, _: int) -> None:
    text = tables.text(message.text)
    if tables.spells and DEVICE_TEXT.match(text):
        raise DecodeError("devices must not be encoded as text", field=field)


def _check_device_text(message: pb.Argument, tables: CheckingTables, field: str, _: int) -> None:
    slot = tables.use_device(message.device_text)
    if not (tables.spells and slot):
        raise DecodeError("this device must be encoded as text", field=field)


def _write_device(value: torch.device, message: pb.Argument, tables: WritingTables) -> None:
    message.device = tables.device(value)


def _check_device(message: pb.Argument, tables: CheckingTables, *_: object) -> None:
    tables.use_device(message.device)


def _walk_group(value: str, key: Key, _: object, tables: WritingTables, __: int) -> None:
    key += GroupName, tables.groups.number(value)


def _write_group(value: str, message: pb.Argument, tables: WritingTables) -> None:
    message.process_group = tables.groups.number(value)


def _walk_symbolic(
    value: Any, key: Key, holes: list[Node], tables: WritingTables, depth: int
) -> None:
    known = symbols.constant(value)
    if known is None:
        key += type(value), tables.expressions.scalar(value)
    else:
        walk(known, key, holes, tables, depth)


def _write_symbolic(value: Any, message: pb.Argument, tables: WritingTables) -> None:
    known = symbols.constant(value)
    if known is None:
        message.expression = tables.expressions.scalar(value)
    else:
        write(known, message, tables)


def _read_symbolic(message: pb.Argument, tables: ReadingTables, *_: object) -> Any:
    number = tables.expression(message.expression)
    if type(number) in (int, float, bool):
        raise DecodeError("constants must be literals, not expressions")
    return number


def _walk_target(value: Any, key: Key, *_: object) -> None:
    # By name: its row comes behind that of what is called.
    key += Callable, allow_table.name_of(value)


def _write_target(value: Any, message: pb.Argument, tables: WritingTables) -> None:
    message.target = tables.target(value)


def _read_target(message: pb.Argument, tables: ReadingTables, *_: object) -> Any:
    target = tables.target(message.target)
    if isinstance(target, str):
        raise DecodeError("a method cannot be an argument")
    return target


REFERENCES = (
    ArgumentKind(
        "operand",
        (Node,),
        _walk_node,
        _write_node,
        lambda _, __, holes, ___: holes.next(),
        check=lambda *_: 1,
    ),
    ArgumentKind(
        "text",
        (str,),
        _walk_text,
        _write_text,
        lambda message, tables, *_: tables.text(message.text),
        _check_text,
        names="strings",
        open_keys=(str,),
    ),
    # Written by the kind "text".
    ArgumentKind(
        "device_text",
        (),
        _walk_text,
        _write_text,
        lambda message, tables, *_: str(tables.device(message.device_text)),
        _check_device_text,
        names="other",
    ),
    ArgumentKind(
        "device",
        (torch.device,),
        by_value,
        _write_device,
        lambda message, tables, *_: tables.device(message.device),
        _check_device,
        names="devices",
        open_keys=(torch.device,),
    ),
    ArgumentKind(
        "process_group",
        (GroupName,),
        _walk_group,
        _write_group,
        lambda message, tables, *_: tables.process_group(message.process_group),
        lambda message, tables, field, _: tables.use_group(message.process_group, field),
        names="other",
        open_keys=(GroupName,),
    ),
    # One whose symbols are all known is a plain number.
    ArgumentKind(
        "expression",
        _SYMBOLIC,
        _walk_symbolic,
        _write_symbolic,
        _read_symbolic,
        lambda message, tables, field, _: tables.use_expression(message.expression, field),
        names="other",
        open_keys=_SYMBOLIC,
    ),
    # A callable of the allow-table, whose type does not tell.
    ArgumentKind(
        "target",
        (),
        _walk_target,
        _write_target,
        _read_target,
        lambda message, tables, *_: tables.use_target(message.target),
        names="other",
        open_keys=(Callable,),
    ),
)

"""Checks table rows in the order of their first use."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from lazyfx.errors import DecodeError
from lazyfx.v1 import graph_pb2 as pb
from lazyfx.wire.canonical_expressions import ExpressionChecker
from lazyfx.wire.canonical_literals import (
    LONGEST_ROW,
    MOST_ROWS,
    check_float,
    check_keys,
    check_shape,
    check_target,
    check_tensor_attribute,
    known_tensor,
    read_tensor,
)
from lazyfx.wire.columns import split_rows
from lazyfx.wire.format import DEVICE_TEXT, MAX_DEPTH
from lazyfx.wire.process_groups import GroupChecker
from lazyfx.wire.targets import sorts_dictionaries

_TABLES = ("strings", "targets", "devices", "tensors", "values", "calls")
_KEY_RANKS = {"boolean": 0, "integer": 1, "text": 2}


class RowChecker:
    """Follows the references into the tables of one body.

    Attributes:
        call_shapes: Number of operand holes of each row of `calls` seen so far.
        opcodes: Opcode of each row of `calls`; 0 and 7 for what is none.
    """

    def __init__(self, body: pb.GraphBody, data: bytes = b"") -> None:
        self._body = body
        # Serialized rows tell doubles apart, and name what is remembered of them.
        rows = split_rows(data)
        numbers = pb.GraphBody.DESCRIPTOR.fields_by_name
        self._serialized = {name: rows[numbers[name].number] for name in (*_TABLES, "expressions")}
        self._sizes = {name: len(self._serialized[name]) for name in _TABLES}
        self._next = dict.fromkeys(_TABLES, 0)
        self._expressions = ExpressionChecker(body)
        self._slots: dict[int, int] = {}
        self._storages = 0
        self._groups = GroupChecker(body)
        self._sorts = self._spells = self._calls = False
        self.call_shapes: list[int] = []
        self.opcodes = np.clip([call.opcode for call in body.calls], 0, 7)

    @property
    def values_seen(self) -> int:
        """Number of rows of `values` seen so far."""
        return self._next["values"]

    def finish(self) -> None:
        """Check that all rows were used, and none is there twice."""
        for table in _TABLES:
            if self._next[table] != self._sizes[table]:
                raise DecodeError(f"row {self._next[table]} is never used", field=table)
        self._expressions.finish()
        self._groups.finish()
        for name, rows in self._serialized.items():
            if len(set(rows)) != len(rows):
                raise DecodeError("a row is there twice", field=name)

    def _first(self, table: str, index: int) -> bool:
        """Whether this is the first use of a row; refuses one that is out of order."""
        following = self._next[table]
        if index < following:
            return False
        if index > following or index >= self._sizes[table]:
            raise DecodeError(f"row {index} is out of first-use order", field=table)
        self._next[table] = following + 1
        return True

    def use_call(self, index: int) -> None:
        """Check a row of `calls` at its first use."""
        self._first("calls", index)
        field = f"calls[{index}]"
        serialized = self._serialized["calls"][index]
        known = _known_call(serialized) if len(serialized) <= LONGEST_ROW else None
        if known is not None:
            target, method, holes = known
            if target:
                self._use_called(target - 1, field, method=method)
            self.call_shapes.append(holes)
            return
        row = self._body.calls[index]
        check_target(row, field)
        self._sorts = self._spells = False
        if row.target:
            method = row.opcode == pb.OPCODE_CALL_METHOD
            self._use_called(row.target - 1, field, method=method)
            self._sorts = not method and sorts_dictionaries(self._body.targets[row.target - 1])
            self._spells = self._sorts or method
        self.call_shapes.append(self.arguments(row, field))

    def _use_called(self, index: int, field: str, *, method: bool) -> None:
        """Check a reference to the target of a call."""
        self.use_target(index)
        if (self._body.targets[index].kind == pb.TARGET_KIND_METHOD) != method:
            raise DecodeError("a target that does not fit the opcode", field=f"{field}.target")

    def arguments(self, row: pb.Call, field: str) -> int:
        """Check the arguments of a call; the number of their holes."""
        check_shape(row, field)
        self._calls = True
        holes, previous = 0, ""
        for argument in row.args:
            holes += self._argument(argument, f"{field}.args", 0)
        for place, keyword in enumerate(row.kwargs):
            self._first("strings", keyword.name)
            name = self._body.strings[keyword.name]
            if place and name <= previous:
                raise DecodeError("not sorted by name, or doubled", field=f"{field}.kwargs")
            previous = name
            holes += self._argument(keyword.value, f"{field}.kwargs", 0)
        if holes and row.opcode in (pb.OPCODE_PLACEHOLDER, pb.OPCODE_GET_ATTR):
            raise DecodeError("operands where there can be none", field=f"{field}.args")
        return holes

    def use_target(self, index: int) -> None:
        """Check a reference to a target."""
        if self._first("targets", index):
            row = self._body.targets[index]
            if not 1 <= row.kind <= 5 or not row.name:
                raise DecodeError("a target without kind or name", field=f"targets[{index}]")

    def use_literal(self, argument: pb.Argument, field: str) -> None:
        """Check an argument that may hold no operands."""
        self._sorts = self._spells = self._calls = False
        if self._argument(argument, field, 0):
            raise DecodeError("an operand where only a literal may be", field=field)

    def _argument(self, argument: pb.Argument, field: str, depth: int) -> int:
        """Check an argument; the number of its holes."""
        kind = argument.WhichOneof("kind")
        if kind == "operand":
            return 1
        if kind in ("integer", "boolean", "none", "ellipsis"):
            return 0
        if kind == "text":
            self._first("strings", argument.text)
            if self._spells and DEVICE_TEXT.match(self._body.strings[argument.text]):
                raise DecodeError("a device is no text here", field=field)
            return 0
        if kind == "size" and self._calls:  # torch.fx makes tuples of them
            raise DecodeError("a size is a tuple here", field=field)
        if kind in ("list", "tuple", "size"):
            return self._items(getattr(argument, kind).items, field, depth)
        return self._rare_argument(kind, argument, field, depth)

    def _items(self, items: Any, field: str, depth: int) -> int:
        if depth >= MAX_DEPTH:
            raise DecodeError("nested too deeply", field=field)
        return sum(self._argument(item, field, depth + 1) for item in items)

    def _rare_argument(
        self, kind: str | None, argument: pb.Argument, field: str, depth: int
    ) -> int:
        if kind == "floating":
            check_float(argument.floating, field)
        elif kind == "complex":
            check_float(argument.complex.real, field)
            check_float(argument.complex.imaginary, field)
        elif kind == "expression":
            self._expressions.use_argument(argument.expression, field)
        elif kind == "target":
            self.use_target(argument.target)
        elif kind in ("device", "device_text", "process_group"):
            self._place(kind, argument, field)
        elif kind == "slice":
            row = argument.slice
            return self._items((row.start, row.stop, row.step), field, depth)
        elif kind == "dictionary":
            return self._dictionary(argument.dictionary.entries, field, depth)
        elif kind in ("dtype", "layout", "memory_format"):
            if not getattr(argument, kind):
                raise DecodeError(f"an unspecified {kind}", field=field)
        else:
            raise DecodeError("an argument without a kind", field=field)
        return 0

    def _place(self, kind: str, argument: pb.Argument, field: str) -> None:
        if kind == "process_group":
            self._groups.use(argument.process_group, field)
            return
        index = getattr(argument, kind)
        self.use_device(index)
        if kind == "device_text" and not (self._spells and self._body.devices[index].slot):
            raise DecodeError("this device is plain text here", field=field)

    def _dictionary(self, entries: Any, field: str, depth: int) -> int:
        if depth >= MAX_DEPTH:
            raise DecodeError("nested too deeply", field=field)
        holes = 0
        keys: list[tuple[int, Any]] = []
        for entry in entries:
            kind = entry.key.WhichOneof("kind")
            if kind not in _KEY_RANKS:
                raise DecodeError("a key that is no text, integer or boolean", field=field)
            key = getattr(entry.key, kind)
            if kind == "text":
                self._first("strings", key)
                key = self._body.strings[key]
            keys.append((_KEY_RANKS[kind], key))
            holes += self._argument(entry.value, field, depth + 1)
        check_keys(keys, field, sort=self._sorts)
        return holes

    def use_device(self, index: int) -> None:
        """Check a reference to a device."""
        if not self._first("devices", index):
            return
        row = self._body.devices[index]
        if not row.type:
            raise DecodeError("a device without a type", field=f"devices[{index}]")
        if row.slot:
            if row.slot != self._slots.get(row.type, 0) + 1:
                raise DecodeError("slots are out of first-use order", field=f"devices[{index}]")
            self._slots[row.type] = row.slot

    def use_tensor(self, index: int) -> None:
        """Check a reference to a tensor description."""
        if not self._first("tensors", index):
            return
        serialized = self._serialized["tensors"][index]
        known = known_tensor(serialized) if len(serialized) <= LONGEST_ROW else None
        row = known or read_tensor(self._body.tensors[index], f"tensors[{index}]")
        for expression in row.expressions:
            self._expressions.use(expression)
        self.use_device(row.device)

    def use_tensor_attribute(self, row: pb.TensorAttribute, field: str) -> None:
        """Check a tensor attribute."""
        self.use_tensor(row.tensor)
        if row.storage > self._storages:
            raise DecodeError("storages are out of first-use order", field=f"{field}.storage")
        self._storages = max(self._storages, row.storage + 1)
        check_tensor_attribute(row, self._body.tensors[row.tensor], field)

    def use_tree_spec(self, spec: pb.TreeSpec, field: str, depth: int = 0) -> None:
        """Check a pytree structure."""
        if depth >= MAX_DEPTH:
            raise DecodeError("nested too deeply", field=field)
        if not 1 <= spec.kind <= 4:
            raise DecodeError("an unknown kind", field=field)
        for key in spec.keys:
            self.use_literal(key, field)
        for child in spec.children:
            self.use_tree_spec(child, field, depth + 1)

    def use_value(self, index: int, depth: int = 0) -> None:
        """Check a reference to a value description; rows inside come before it."""
        if index < self._next["values"]:
            return
        field = f"values[{index}]"
        if index >= self._sizes["values"] or depth >= MAX_DEPTH:
            raise DecodeError("out of range, or nested too deeply", field=field)
        row = self._body.values[index]
        kind = row.WhichOneof("kind")
        if kind == "tensor":
            self.use_tensor(row.tensor)
        elif kind in ("list", "tuple"):
            for item in getattr(row, kind).items:
                if item >= index:
                    raise DecodeError("a reference that is not backwards", field=field)
                self.use_value(item, depth + 1)
        elif kind == "expression":
            self._expressions.use(row.expression)
        elif kind == "floating":
            check_float(row.floating, field)
        elif kind is None:
            raise DecodeError("a value without a kind", field=field)
        self._first("values", index)


@lru_cache(maxsize=MOST_ROWS)
def _known_call(serialized: bytes) -> tuple[int, bool, int] | None:
    """Target, whether it is a method, and holes of a call that is right in any message.

    None where tables must tell.
    """
    call = pb.Call.FromString(serialized)
    checker = RowChecker(pb.GraphBody())
    # What is in order where order counts is in order everywhere.
    checker._sorts = True  # noqa: SLF001 - our own class
    try:
        check_target(call, "")
        return call.target, call.opcode == pb.OPCODE_CALL_METHOD, checker.arguments(call, "")
    except DecodeError:
        return None

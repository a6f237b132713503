"""Checks table rows in the order of their first use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.arguments.scalar_kinds import check_float
from lazyfx.shared.wire.canonical.argument_rules import ArgumentChecker, known_call
from lazyfx.shared.wire.canonical.call_references import (
    CallReferences,
    NamedCall,
    Rows,
    named_calls,
)
from lazyfx.shared.wire.canonical.expression_rules import ExpressionChecker
from lazyfx.shared.wire.canonical.literal_rules import (
    LONGEST_ROW,
    MAX_ROWS,
    check_target,
    check_tensor_attribute,
    known_tensor,
    read_tensor,
)
from lazyfx.shared.wire.columns import split_rows
from lazyfx.shared.wire.format import MAX_DEPTH
from lazyfx.shared.wire.process_groups import GroupChecker
from lazyfx.v1 import graph_pb2 as pb

_TABLES = ("strings", "targets", "devices", "tensors", "values", "calls")


class RowChecker(ArgumentChecker):
    """Follows the references into the tables of one body.

    Attributes:
        calls: The rows of `calls`, with what they name; None for what is not to be remembered.
        call_shapes: Number of operand holes of each row of `calls` seen so far.
        rows: The rows of the body's tables, serialized.
        opcodes: Opcode of each row of `calls`; 0 and 7 for what is none.
    """

    def __init__(self, body: pb.GraphBody, data: bytes) -> None:
        super().__init__()
        self._body = body
        # Serialized rows tell doubles apart, and name what is remembered of them.
        self.rows: Rows = split_rows(data)
        self._sizes = {name: len(self.rows[name]) for name in _TABLES}
        self._next = dict.fromkeys(_TABLES, 0)
        self._expressions = ExpressionChecker(body)
        self._slots: dict[int, int] = {}
        self._storages = 0
        self._groups = GroupChecker(body)
        self.calls: Sequence[NamedCall | None] = named_calls(self.rows)
        self.call_shapes: list[int] = []
        opcodes = [
            body.calls[number].opcode if call is None else call.opcode
            for number, call in enumerate(self.calls)
        ]
        self.opcodes = np.array([min(max(opcode, 0), 7) for opcode in opcodes], np.int64)
        self._tensors_of_values = [
            _tensor_of(row) if len(row) <= LONGEST_ROW else None for row in self.rows["values"]
        ]

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
        for name in (*_TABLES, "expressions"):
            rows = self.rows[name]
            if len(set(rows)) != len(rows):
                raise DecodeError("a duplicate row", field=name)

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
        call = self.calls[index]
        holes = None if call is None else known_call(call.key)
        if call is None or holes is None:
            holes = self._use_new(index)
        else:
            self._use_references(call.references)
        self.call_shapes.append(holes)

    def _use_references(self, references: CallReferences) -> None:
        """Check the references of a call that is right by itself."""
        target, texts, devices = references
        if target > self._next["targets"]:
            self.use_target(target - 1)
        for text in texts:
            self._first("strings", text)
        for device in devices:
            self.use_device(device)

    def _use_new(self, index: int) -> int:
        """Check a call, and say how many holes it has."""
        row, field = self._body.calls[index], f"calls[{index}]"
        check_target(row, field)
        if row.target:
            self.use_target(row.target - 1)
        return self.call(row, self._body.targets[row.target - 1] if row.target else None, field)

    def text(self, index: int) -> str:
        """Check a reference to a string, and read it."""
        self._first("strings", index)
        return self._body.strings[index]

    def use_target(self, index: int) -> None:
        """Check a reference to a target."""
        if self._first("targets", index):
            row = self._body.targets[index]
            if not 1 <= row.kind <= 5 or not row.name:
                raise DecodeError("a target without kind or name", field=f"targets[{index}]")

    def use_device(self, index: int) -> int:
        """Check a reference to a device; its slot."""
        first = self._first("devices", index)
        row = self._body.devices[index]
        if first:
            if not row.type:
                raise DecodeError("a device without a type", field=f"devices[{index}]")
            if row.slot and row.slot != self._slots.get(row.type, 0) + 1:
                raise DecodeError("slots are out of first-use order", field=f"devices[{index}]")
            if row.slot:
                self._slots[row.type] = row.slot
        return row.slot

    def use_expression(self, index: int, field: str) -> None:
        """Check a reference to an expression that is an argument."""
        self._expressions.use_argument(index, field)

    def use_group(self, number: int, field: str) -> None:
        """Check a reference to a process group."""
        self._groups.use(number, field)

    def use_tensor(self, index: int) -> None:
        """Check a reference to a tensor description."""
        if not self._first("tensors", index):
            return
        serialized = self.rows["tensors"][index]
        known = known_tensor(serialized) if len(serialized) <= LONGEST_ROW else None
        row = known or read_tensor(self._body.tensors[index], f"tensors[{index}]")
        for expression in row.expressions:
            self._expressions.use(expression)
        if row.device >= self._next["devices"]:
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
        if not 1 <= spec.kind <= (4 if depth else 5):
            raise DecodeError("an unknown kind", field=field)
        if spec.keys and spec.kind != pb.TREE_SPEC_KIND_DICT:
            raise DecodeError("keys on a node that takes none", field=field)
        for key in spec.keys:
            self.literal(key, field)
        for child in spec.children:
            self.use_tree_spec(child, field, depth + 1)

    def use_value(self, index: int, depth: int = 0) -> None:
        """Check a reference to a value description; rows inside come before it."""
        following = self._next
        if index < following["values"]:
            return
        if index >= self._sizes["values"] or depth >= MAX_DEPTH:
            raise DecodeError("out of range, or nested too deeply", field=f"values[{index}]")
        tensor = self._tensors_of_values[index]
        if tensor is not None:
            if tensor >= following["tensors"]:
                self.use_tensor(tensor)
            self._first("values", index)
            return
        row, field = self._body.values[index], f"values[{index}]"
        kind = row.WhichOneof("kind")
        if kind in ("list", "tuple"):
            for item in getattr(row, kind).items:
                if item >= index:
                    raise DecodeError("a forward reference", field=field)
                self.use_value(item, depth + 1)
        elif kind == "expression":
            self._expressions.use(row.expression)
        elif kind == "floating":
            check_float(row.floating, field)
        elif kind is None:
            raise DecodeError("a value without a kind", field=field)
        self._first("values", index)


@lru_cache(maxsize=MAX_ROWS)
def _tensor_of(serialized: bytes) -> int | None:
    """The tensor of a value that is one; None for other values."""
    row = pb.ValueDescription.FromString(serialized)
    return row.tensor if row.WhichOneof("kind") == "tensor" else None

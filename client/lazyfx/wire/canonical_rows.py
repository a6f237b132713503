"""Checks table rows in the order of their first use."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

from lazyfx.errors import DecodeError
from lazyfx.v1 import graph_pb2 as pb
from lazyfx.wire.canonical_expressions import ExpressionChecker
from lazyfx.wire.format import MAX_DEPTH, MAX_DIMENSIONS, QUIET_NAN_BITS
from lazyfx.wire.targets import sorts_dictionaries

_TABLES = ("strings", "targets", "devices", "tensors", "values", "calls")
_KEY_RANKS = {"boolean": 0, "integer": 1, "text": 2}


class RowChecker:
    """Follows the references into the tables of one body.

    Attributes:
        call_shapes: Number of operand holes of each row of `calls` seen so far.
        opcodes: Opcode of each row of `calls`.
    """

    def __init__(self, body: pb.GraphBody) -> None:
        self._body = body
        self._sizes = {name: len(getattr(body, name)) for name in _TABLES}
        self._next = dict.fromkeys(_TABLES, 0)
        self._expressions = ExpressionChecker(body)
        self._slots: dict[int, int] = {}
        self._storages = 0
        self._sorts = False
        self.call_shapes: list[int] = []
        self.opcodes = [call.opcode for call in body.calls]

    def finish(self) -> None:
        """Check that all rows were used, and none is there twice."""
        for table in _TABLES:
            if self._next[table] != self._sizes[table]:
                raise DecodeError(f"row {self._next[table]} is never used", field=table)
        self._expressions.finish()
        body = self._body
        if len(set(body.strings)) != len(body.strings):
            raise DecodeError("a row is there twice", field="strings")
        for name in (*_TABLES[1:], "expressions"):
            rows: Any = getattr(body, name)
            if len({row.SerializeToString(deterministic=True) for row in rows}) != len(rows):
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
        row = self._body.calls[index]
        field = f"calls[{index}]"
        opcode = row.opcode
        if opcode in (pb.OPCODE_CALL_FUNCTION, pb.OPCODE_CALL_METHOD):
            if not row.target:
                raise DecodeError("no target", field=f"{field}.target")
            self.use_target(row.target - 1)
            called = self._body.targets[row.target - 1].kind == pb.TARGET_KIND_METHOD
            if called != (opcode == pb.OPCODE_CALL_METHOD):
                raise DecodeError("a target that does not fit the opcode", field=f"{field}.target")
        elif row.target:
            raise DecodeError("a target where there can be none", field=f"{field}.target")
        _check_arguments(row, field)
        function = opcode == pb.OPCODE_CALL_FUNCTION
        self._sorts = function and sorts_dictionaries(self._body.targets[row.target - 1])
        holes = 0
        for argument in row.args:
            holes += self._argument(argument, f"{field}.args", 0)
        previous = ""
        for place, keyword in enumerate(row.kwargs):
            self._first("strings", keyword.name)
            name = self._body.strings[keyword.name]
            if place and name <= previous:
                raise DecodeError("not sorted by name, or doubled", field=f"{field}.kwargs")
            previous = name
            holes += self._argument(keyword.value, f"{field}.kwargs", 0)
        if holes and opcode in (pb.OPCODE_PLACEHOLDER, pb.OPCODE_GET_ATTR):
            raise DecodeError("operands where there can be none", field=f"{field}.args")
        self.call_shapes.append(holes)

    def use_target(self, index: int) -> None:
        """Check a reference to a target."""
        if self._first("targets", index):
            row = self._body.targets[index]
            if not 1 <= row.kind <= 5 or not row.name:
                raise DecodeError("a target without kind or name", field=f"targets[{index}]")

    def use_literal(self, argument: pb.Argument, field: str) -> None:
        """Check an argument that may hold no operands."""
        self._sorts = False
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
            return 0
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
        elif kind == "device":
            self.use_device(argument.device)
        elif kind == "expression":
            self._expressions.use(argument.expression)
        elif kind == "target":
            self.use_target(argument.target)
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

    def _dictionary(self, entries: Any, field: str, depth: int) -> int:
        if depth >= MAX_DEPTH:
            raise DecodeError("nested too deeply", field=field)
        holes = 0
        keys: list[tuple[int, Any]] = []
        for entry in entries:
            kind = entry.key.WhichOneof("kind")
            if kind not in _KEY_RANKS:
                raise DecodeError("a key that is no text, integer or boolean", field=field)
            self._argument(entry.key, field, depth + 1)
            key = getattr(entry.key, kind)
            keys.append((_KEY_RANKS[kind], self._body.strings[key] if kind == "text" else key))
            holes += self._argument(entry.value, field, depth + 1)
        if len({value for _, value in keys}) != len(keys):
            raise DecodeError("a key is there twice", field=field)
        if self._sorts and keys != sorted(keys):
            raise DecodeError("not sorted by key", field=field)
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
        row = self._body.tensors[index]
        field = f"tensors[{index}]"
        for expression in (*row.symbolic_shape, *row.symbolic_stride):
            self._expressions.use(expression)
        if row.symbolic_storage_offset:
            self._expressions.use(row.symbolic_storage_offset - 1)
        self.use_device(row.device)
        if not row.dtype or row.layout == pb.LAYOUT_STRIDED:
            raise DecodeError("no dtype, or a layout that is the usual one", field=field)
        if row.symbolic_shape:
            if row.shape or row.stride or row.storage_offset:
                raise DecodeError("both static and symbolic sizes", field=field)
            if row.symbolic_stride and len(row.symbolic_stride) != len(row.symbolic_shape):
                raise DecodeError("not one stride a dimension", field=field)
        elif row.symbolic_stride or row.symbolic_storage_offset:
            raise DecodeError("symbolic strides of static sizes", field=field)
        else:
            _check_static(row, field)
        if max(len(row.shape), len(row.symbolic_shape)) > MAX_DIMENSIONS:
            raise DecodeError(f"more than {MAX_DIMENSIONS} dimensions", field=field)

    def use_tensor_attribute(self, row: pb.TensorAttribute, field: str) -> None:
        """Check a tensor attribute."""
        self.use_tensor(row.tensor)
        if row.storage > self._storages:
            raise DecodeError("storages are out of first-use order", field=f"{field}.storage")
        self._storages = max(self._storages, row.storage + 1)
        if not 1 <= row.role <= 3:
            raise DecodeError("a tensor without a role", field=f"{field}.role")
        if row.HasField("content") != (row.role == pb.TENSOR_ROLE_CONSTANT) or (
            row.HasField("content") and len(row.content.sha256) != 32
        ):
            raise DecodeError("constants, and only they, have a digest", field=f"{field}.content")
        description = self._body.tensors[row.tensor]
        if description.symbolic_shape:
            raise DecodeError("an attribute of symbolic size", field=f"{field}.tensor")
        if description.is_parameter != (row.role == pb.TENSOR_ROLE_PARAMETER):
            raise DecodeError("the role does not fit the description", field=f"{field}.role")

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
        following = self._next["values"]
        if index < following:
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


def check_float(value: float, field: str) -> None:
    """Refuse every NaN but the quiet one."""
    if math.isnan(value) and struct.unpack("<Q", struct.pack("<d", value))[0] != QUIET_NAN_BITS:
        raise DecodeError("a NaN that is not the quiet NaN", field=field)


def _check_arguments(row: pb.Call, field: str) -> None:
    if row.opcode == pb.OPCODE_OUTPUT and (len(row.args) != 1 or row.kwargs):
        raise DecodeError("an output has exactly one argument", field=f"{field}.args")
    if row.opcode == pb.OPCODE_GET_ATTR and (row.args or row.kwargs):
        raise DecodeError("arguments where there can be none", field=f"{field}.args")
    if row.opcode == pb.OPCODE_PLACEHOLDER and (len(row.args) > 1 or row.kwargs):
        raise DecodeError("a placeholder has at most a default", field=f"{field}.args")
    if row.stars and (row.opcode != pb.OPCODE_PLACEHOLDER or row.stars > 2):
        raise DecodeError("stars where there can be none", field=f"{field}.stars")
    if not 1 <= row.opcode <= 6:
        raise DecodeError(f"unknown opcode {row.opcode}", field=f"{field}.opcode")


def _check_static(row: pb.TensorDescription, field: str) -> None:
    shape: Sequence[int] = row.shape
    stride: Sequence[int] = row.stride
    if any(size < 0 for size in shape) or row.storage_offset < 0:
        raise DecodeError("a negative size", field=field)
    if any(step < 0 for step in stride):
        raise DecodeError("a negative stride", field=field)
    if not stride:
        return
    if len(stride) != len(shape):
        raise DecodeError("not one stride a dimension", field=field)
    expected, contiguous = 1, True
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        contiguous = contiguous and step == expected
        expected *= max(size, 1)
    if contiguous:
        raise DecodeError("strides that are the usual ones", field=field)

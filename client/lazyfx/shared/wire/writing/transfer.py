"""Copies descriptions from a decoded message into one under construction.

Encoding a decoded graph again must give the same rows without building tensors or expressions, so
rows are copied with their indices translated.
"""

from __future__ import annotations

from typing import Any, Protocol

from lazyfx.shared.wire.values.descriptions import ValueTables
from lazyfx.v1 import graph_pb2 as pb


class Destination(Protocol):
    """The part of `message_tables.Tables` that rows are copied into."""

    expressions: Any

    def device(self, device: Any) -> int: ...  # noqa: D102
    def add_tensor(self, row: pb.TensorDescription) -> int: ...  # noqa: D102
    def add_value(self, row: pb.ValueDescription) -> int: ...  # noqa: D102


class Transfer:
    """Translates indices of `source` into indices of `destination`."""

    def __init__(self, source: ValueTables, destination: Destination) -> None:
        self._source = source
        self._body = source.body
        self._destination = destination
        self._expressions: dict[int, int] = {}
        self._tensors: dict[int, int] = {}
        self._values: dict[int, int] = {}

    def symbol(self, index: int) -> int:
        """Index of a symbol: the symbol that values were built with, if any were."""
        built = self._source.latest_symbols()
        key: Any = (id(self._source), index)
        if built is not None:
            key = (id(built[0]), built[1][index])
        row = pb.Symbol()
        row.CopyFrom(self._body.symbols[index])
        found: int = self._destination.expressions.add_symbol(key, row)
        return found

    def expression(self, index: int) -> int:
        """Index of an expression."""
        found = self._expressions.get(index)
        if found is None:
            row = pb.SymbolicExpression()
            row.CopyFrom(self._body.expressions[index])
            translate = (
                self.symbol if row.operator == pb.SYMBOLIC_OPERATOR_SYMBOL else self.expression
            )
            row.operands[:] = [translate(operand) for operand in row.operands]
            found = self._expressions[index] = self._destination.expressions.add(row)
        return found

    def tensor(self, index: int) -> int:
        """Index of a tensor description."""
        found = self._tensors.get(index)
        if found is None:
            row = pb.TensorDescription()
            row.CopyFrom(self._body.tensors[index])
            row.symbolic_shape[:] = [self.expression(i) for i in row.symbolic_shape]
            row.symbolic_stride[:] = [self.expression(i) for i in row.symbolic_stride]
            if row.symbolic_storage_offset:
                row.symbolic_storage_offset = 1 + self.expression(row.symbolic_storage_offset - 1)
            row.device = self._destination.device(self._source.devices[row.device])
            found = self._tensors[index] = self._destination.add_tensor(row)
        return found

    def value(self, index: int) -> int:
        """Index of a value description."""
        found = self._values.get(index)
        if found is None:
            row = pb.ValueDescription()
            row.CopyFrom(self._body.values[index])
            kind = row.WhichOneof("kind")
            if kind == "tensor":
                row.tensor = self.tensor(row.tensor)
            elif kind == "expression":
                row.expression = self.expression(row.expression)
            elif kind == "list" or kind == "tuple":
                items = getattr(row, kind).items
                items[:] = [self.value(item) for item in items]
            found = self._values[index] = self._destination.add_value(row)
        return found

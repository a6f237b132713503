"""Checks that bytes are a graph body in canonical form.

Equal graphs must have equal bytes, so that equal digests mean equal graphs, and a reader must never
meet a dangling index. One walk over the columns checks both: tables are read in the order in which
their rows are first used.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError as ProtobufError

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.canonical.call_references import NamedCall
from lazyfx.shared.wire.canonical.row_rules import RowChecker
from lazyfx.shared.wire.columns import Column, GraphReading, column, first_uses, read_operands
from lazyfx.v1 import graph_pb2 as pb


class CanonicalBody(NamedTuple):
    """A graph body in canonical form.

    Attributes:
        message: The parsed body.
        calls: One per row of `calls`; None for rows that are not cached.
        graphs: The columns of each graph.
    """

    message: pb.GraphBody
    calls: Sequence[NamedCall | None]
    graphs: tuple[GraphReading, ...]


def check_canonical(body: bytes) -> pb.GraphBody:
    """Parse a graph body and check that it is canonical; see `read_canonical`."""
    return read_canonical(body).message


def read_canonical(body: bytes) -> CanonicalBody:
    """Parse a graph body and check that it is canonical.

    Time and memory are linear in the size of `body`.

    Raises:
        DecodeError: The bytes do not parse, contain unknown or repeated fields, a table out of
            first-use order, unused or duplicate rows, or an index out of range, or a graph does not
            end with its only output. The error names the field and the node.
    """
    message = pb.GraphBody()
    try:
        message.ParseFromString(body)
    except (ProtobufError, RecursionError):
        raise DecodeError("the bytes are not a GraphBody message") from None
    except UnicodeDecodeError:
        raise DecodeError("a string is not UTF-8") from None
    message.DiscardUnknownFields()
    if message.SerializeToString(deterministic=True) != body:
        raise DecodeError(
            "the bytes are not in canonical form: unknown, duplicate or unsorted fields"
        )
    if not message.graphs:
        raise DecodeError("the body has no graph", field="graphs")
    rows = RowChecker(message, body)
    graphs = check_graphs(message, rows)
    rows.finish()
    return CanonicalBody(message, rows.calls, graphs)


def check_graphs(message: pb.GraphBody, rows: RowChecker) -> tuple[GraphReading, ...]:
    """Check the columns of all graphs, and with `rows` each row at its first use.

    Raises:
        DecodeError: A check failed; names the field, the graph and the node.
    """
    children = _Children(len(message.graphs))
    graphs = []
    for index, columns in enumerate(message.graphs):
        children.enter(index)
        graphs.append(_check_graph(index, columns, rows, children))
    children.finish()
    return tuple(graphs)


class _Children:
    """Checks that child graphs are numbered in the order in which they are reached."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._current = 0
        self._next = 1

    def enter(self, index: int) -> None:
        """Start graph `index`, which an earlier graph must have referenced."""
        if index >= self._next and index:
            raise DecodeError("no earlier graph refers to this one", field=f"graphs[{index}]")
        self._current = index

    def refer(self, index: int, field: str) -> None:
        """Check a reference to a child graph."""
        if not self._current < index < self._count or index > self._next:
            raise DecodeError(f"graph {index} is out of order", field=field)
        self._next = max(self._next, index + 1)

    def finish(self) -> None:
        """Check that each graph was referenced."""
        if self._next != self._count:
            raise DecodeError("a graph that nothing refers to", field="graphs")


def _check_graph(
    number: int, columns: pb.GraphColumns, rows: RowChecker, children: _Children
) -> GraphReading:
    values, field = columns.values, f"graphs[{number}]"
    if values and (len(values) != len(columns.calls) or not any(values)):
        raise DecodeError(
            f"{len(values)} values for {len(columns.calls)} nodes", field=f"{field}.values"
        )
    if values and values[-1]:
        raise DecodeError(
            "the output must not have a value",
            field=f"{field}.values",
            node=len(values) - 1,
            graph=number,
        )
    attributes = _Attributes(columns.attributes, field, rows, children)
    walk = _NodeWalk(columns, field, rows, attributes)
    try:
        reading = walk.run()
    except DecodeError as error:
        # Errors in table rows already name their field.
        outer = "" if error.field else field
        raise error.within(outer, node=walk.node, graph=number) from None
    except IndexError:
        raise DecodeError(
            "too few operands", field=f"{field}.operands", node=walk.node, graph=number
        ) from None
    attributes.finish()
    return reading


class _NodeWalk:
    """Walks the columns of one graph; `node` is its position."""

    def __init__(
        self, columns: pb.GraphColumns, field: str, rows: RowChecker, attributes: _Attributes
    ) -> None:
        self._columns = columns
        self._field = field
        self._rows = rows
        self._attributes = attributes
        self.node = 0

    def run(self) -> GraphReading:
        """Check every node. Raises DecodeError, or IndexError if there are too few operands."""
        rows = self._rows
        calls, operands = column(self._columns.calls), column(self._columns.operands)
        kinds = self._kinds(calls)
        reads = _TAKES_ATTRIBUTE[kinds]
        events = reads | first_uses(calls, len(rows.call_shapes))
        if self._columns.values:
            values = column(self._columns.values)
            fresh = first_uses(values, 1 + rows.values_seen)
            events |= fresh
        else:
            values = fresh = np.zeros(len(calls), np.int64)
        # Nearly all nodes use rows that were used before.
        places = np.flatnonzero(events)
        numbers: list[int] = calls.tolist()
        self._use(numbers, operands.tolist() if reads.any() else [], zip(
            places.tolist(), reads[places].tolist(), (values * fresh)[places].tolist(), strict=True
        ))  # fmt: skip
        self.node = len(calls) - 1
        holes, readers = column(rows.call_shapes)[calls], np.flatnonzero(reads)
        return read_operands(numbers, operands, holes, readers, f"{self._field}.operands")

    def _kinds(self, calls: Column) -> Column:
        """The opcode of each node; checks that the last node, and no other, is an output."""
        opcodes, field = self._rows.opcodes, f"{self._field}.calls"
        if len(calls) and calls.max() >= len(opcodes):
            self.node = int(np.flatnonzero(calls >= len(opcodes))[0])
            raise DecodeError(f"call {calls[self.node]} of {len(opcodes)}", field=field)
        kinds: Column = opcodes[calls]
        outputs = np.flatnonzero(kinds == pb.OPCODE_OUTPUT)
        if len(outputs) > 1 or (len(outputs) and outputs[0] != len(calls) - 1):
            self.node = int(outputs[0]) + 1
            raise DecodeError("a node follows the output", field=field)
        self.node = max(0, len(calls) - 1)
        if not len(outputs):
            raise DecodeError("the last node is not an output", field=field)
        return kinds

    def _use(
        self, calls: list[int], operands: list[int], events: Iterable[tuple[int, bool, int]]
    ) -> None:
        """Check rows at their first use, and attributes at the nodes that read or call them."""
        rows, known = self._rows, self._rows.call_shapes
        position = done = 0
        for number, reads, value in events:
            self.node = number
            call = calls[number]
            if reads:
                position += sum(map(known.__getitem__, calls[done:number]))
                done = number
                self._attributes.use(operands[position], int(rows.opcodes[call]))
                position += 1
            if call >= len(known):
                rows.use_call(call)
            if value:
                rows.use_value(value - 1)


# By opcode; an invalid number is refused when its row is checked.
_TAKES_ATTRIBUTE = np.zeros(8, np.bool_)
_TAKES_ATTRIBUTE[[pb.OPCODE_GET_ATTR, pb.OPCODE_CALL_MODULE]] = True


class _Attributes:
    """Checks the attributes of one graph as its nodes use them."""

    def __init__(self, rows: Any, field: str, checker: RowChecker, children: _Children) -> None:
        self._rows = rows
        self._field = f"{field}.attributes"
        self._checker = checker
        self._children = children
        self._next = 0
        # The opcode of the first use: one attribute cannot be read by GET_ATTR in one place and
        # called in another.
        self._opcodes: dict[int, int] = {}

    def use(self, index: int, opcode: int) -> None:
        """Check a reference to an attribute, and the attribute itself at its first use."""
        if index in self._opcodes:
            if self._opcodes[index] != opcode:
                raise DecodeError(f"attribute {index} is both read and called", field=self._field)
            return
        if index != self._next or index >= len(self._rows):
            raise DecodeError(f"attribute {index} is out of order", field=self._field)
        self._opcodes[index] = opcode
        self._next += 1
        row = self._rows[index]
        field = f"{self._field}[{index}]"
        kind = row.WhichOneof("kind")
        if opcode == pb.OPCODE_CALL_MODULE and kind not in ("graph", "module"):
            raise DecodeError("only graphs and modules can be called", field=field)
        if kind == "tensor":
            self._checker.use_tensor_attribute(row.tensor, field)
        elif kind == "graph":
            self._children.refer(row.graph, f"{field}.graph")
        elif kind == "literal":
            self._checker.literal(row.literal, f"{field}.literal")
        elif kind == "tree_spec":
            self._checker.use_tree_spec(row.tree_spec, f"{field}.tree_spec")
        elif kind == "module":
            self._use_module(row.module, f"{field}.module")
        else:
            raise DecodeError("an attribute without a kind", field=field)

    def _use_module(self, module: pb.LeafModule, field: str) -> None:
        _check_sorted([option.name for option in module.options], f"{field}.options")
        for option in module.options:
            self._checker.literal(option.value, f"{field}.options")
        _check_sorted([tensor.name for tensor in module.tensors], f"{field}.tensors")
        for tensor in module.tensors:
            if tensor.attribute != self._next or self._next >= len(self._rows):
                raise DecodeError("its tensors do not follow it", field=f"{field}.tensors")
            row = self._rows[self._next]
            if row.WhichOneof("kind") != "tensor":
                raise DecodeError("its tensors do not follow it", field=f"{field}.tensors")
            self._checker.use_tensor_attribute(row.tensor, f"{self._field}[{self._next}]")
            # No node refers to these directly.
            self._opcodes[self._next] = pb.OPCODE_UNSPECIFIED
            self._next += 1

    def finish(self) -> None:
        """Check that each attribute was used."""
        if self._next != len(self._rows):
            raise DecodeError(f"attribute {self._next} is never used", field=self._field)


def _check_sorted(names: Sequence[str], field: str) -> None:
    if any(before >= after for before, after in itertools.pairwise(names)):
        raise DecodeError("not sorted by name, or duplicate names", field=field)

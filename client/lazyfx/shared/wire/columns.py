"""Reads the columns of a graph: which node each operand belongs and refers to.

Each step is one loop in C over a whole column; the node at fault is only searched for after an
error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lazyfx.errors import DecodeError
from lazyfx.v1 import graph_pb2 as pb

Column = NDArray[np.int64]


class GraphReading(NamedTuple):
    """The decoded columns of a graph.

    Attributes:
        calls: The call index of each node.
        readers: Indices of the nodes that read or call an attribute.
        attributes: The attribute of each of these.
        operands: Indices of the nodes that fill the holes, for all nodes in order.
    """

    calls: list[int]
    readers: Column
    attributes: Column
    operands: Column


def column(numbers: Sequence[int]) -> Column:
    """A column of a message; reading one item by item is slow."""
    return np.asarray(numbers, dtype=np.int64)


def read_operands(
    calls: list[int], operands: Column, holes: Column, readers: Column, field: str = "operands"
) -> GraphReading:
    """Split operands by node, and resolve the nodes and attributes that they refer to.

    Args:
        calls: The call index of each node.
        operands: `GraphColumns.operands`.
        holes: Number of operands of each node.
        readers: Indices of the nodes that have an attribute index before their operands, in
            ascending order.
        field: The name of the column in errors.

    Raises:
        DecodeError: Too few operands, too many, or a reference that is not to an earlier node.
    """
    attributes, deltas = _split_attributes(operands, holes, readers, field)
    return GraphReading(calls, readers, attributes, _references(deltas, holes, field))


def _split_attributes(
    operands: Column, holes: Column, readers: Column, field: str
) -> tuple[Column, Column]:
    """The attribute index of each reader, and the back-references of all nodes."""
    expected = int(holes.sum()) + len(readers)
    if len(operands) < expected:
        raise DecodeError("too few operands", field=field)
    if len(operands) > expected:
        raise DecodeError("too many operands", field=field)
    if not len(readers):
        return readers, operands
    starts = np.cumsum(holes) - holes
    places = starts[readers] + np.arange(len(readers))
    return operands[places], np.delete(operands, places)


def _references(deltas: Column, holes: Column, field: str) -> Column:
    """The node that each back-reference refers to; `deltas` says how many nodes back it is."""
    if not len(deltas):
        return deltas
    owners = np.repeat(np.arange(len(holes)), holes)
    numbers: Column = owners - deltas
    if numbers.min() < 0 or deltas.min() < 1:
        wrong = int(np.flatnonzero((deltas < 1) | (numbers < 0))[0])
        node = int(owners[wrong])
        raise DecodeError(
            f"a back-reference of {int(deltas[wrong])} is not within 1 to {node}",
            field=field,
            node=node,
        )
    return numbers


def first_uses(numbers: Column, following: int) -> NDArray[np.bool_]:
    """Where a column has a number greater than all before it, and than those before `following`.

    In a column in first-use order, these are the positions where a row is first used.
    """
    fresh: NDArray[np.bool_] = numbers >= following
    fresh[1:] &= numbers[1:] > np.maximum.accumulate(numbers)[:-1]
    return fresh


def split_rows(body: bytes) -> dict[str, list[bytes]]:
    """The rows of each table of a GraphBody, serialized.

    Args:
        body: A body in canonical form: each field has a one-byte tag, and all fields before the
            number of process groups are strings and messages.
    """
    # Five bits of a one-byte tag are the field number.
    rows: list[list[bytes]] = [[] for _ in range(32)]
    place, end = 0, len(body)
    while place < end:
        tag, length = body[place], body[place + 1]
        if tag & 7 != _LENGTH_DELIMITED:
            break
        place += 2
        if length > 127:
            shift = 7
            while length >> shift:
                length += (body[place] - 1) << shift
                place += 1
                shift += 7
        following = place + length
        rows[tag >> 3].append(body[place:following])
        place = following
    return {name: rows[number] for name, number in _TABLE_NUMBERS.items()}


# The wire type of strings and messages.
_LENGTH_DELIMITED = 2
_TABLE_NUMBERS = {
    name: pb.GraphBody.DESCRIPTOR.fields_by_name[name].number
    for name in ("strings", "targets", "devices", "tensors", "values", "expressions", "calls")
}

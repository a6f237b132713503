"""Reads the columns of a graph: whose operand each number is, and which node it means.

Each step is one loop in C over a whole column; which node is at fault is searched for
only when there is one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lazyfx.errors import DecodeError
from lazyfx.v1 import graph_pb2 as pb

Column = NDArray[np.int64]


def column(numbers: Sequence[int]) -> Column:
    """A column of a message; reading one item by item is slow."""
    return np.asarray(numbers, dtype=np.int64)


def split_attributes(
    operands: Column, holes: Column, readers: Column, field: str = "operands"
) -> tuple[Column, Column]:
    """Tell attribute indices from back-references.

    Args:
        operands: `GraphColumns.operands`.
        holes: Number of operands of each node.
        readers: Numbers of the nodes that have an attribute index before their operands,
            in ascending order.
        field: What errors call the column.

    Returns:
        The attribute index of each reader, and the back-references of all nodes.

    Raises:
        DecodeError: There are not as many operands as the calls take.
    """
    expected = int(holes.sum()) + len(readers)
    if len(operands) < expected:
        raise DecodeError("operands end too early: too few operands", field=field)
    if len(operands) > expected:
        raise DecodeError("operands are left over: too many operands", field=field)
    if not len(readers):
        return readers, operands
    starts = np.cumsum(holes) - holes
    places = starts[readers] + np.arange(len(readers))
    return operands[places], np.delete(operands, places)


def references(deltas: Column, holes: Column, field: str = "operands") -> Column:
    """The node that each back-reference means.

    Args:
        deltas: How many nodes back, one an operand.
        holes: Number of operands of each node; their sum is the number of deltas.
        field: What errors call the column.

    Raises:
        DecodeError: A reference is not to an earlier node; names the node that has it.
    """
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

    In a column that is in first-use order these are the places where a row is used first.
    """
    fresh: NDArray[np.bool_] = numbers >= following
    fresh[1:] &= numbers[1:] > np.maximum.accumulate(numbers)[:-1]
    return fresh


def split_rows(body: bytes) -> list[list[bytes]]:
    """The rows of each table of a GraphBody by field number, serialized.

    Args:
        body: In canonical form: each field has a tag of one byte, and all before the number of
            process groups are strings and messages.
    """
    rows: list[list[bytes]] = [[] for _ in range(pb.GraphBody.PROCESS_GROUPS_FIELD_NUMBER)]
    place, end = 0, len(body)
    while place < end:
        field, length = body[place] >> 3, body[place + 1]
        if field >= len(rows):
            break
        place += 2
        shift = 7
        while length >> shift:
            length += (body[place] - 1) << shift
            place += 1
            shift += 7
        rows[field].append(body[place : place + length])
        place += length
    return rows

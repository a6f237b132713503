"""Reads the columns of a graph: whose operand each number is, and which node it means.

Each step is one loop in C over a whole column; which node is at fault is searched for
only when there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, repeat
from operator import sub

from lazyfx.errors import DecodeError


def split_attributes(
    operands: list[int], holes: Sequence[int], readers: Sequence[int], field: str = "operands"
) -> tuple[list[int], list[int]]:
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
    expected = sum(holes) + len(readers)
    if len(operands) < expected:
        raise DecodeError("operands end too early: too few operands", field=field)
    if len(operands) > expected:
        raise DecodeError("operands are left over: too many operands", field=field)
    if not readers:
        return [], operands
    starts = list(accumulate(holes, initial=0))
    places = [starts[node] + before for before, node in enumerate(readers)]
    attributes = [operands[place] for place in places]
    deltas: list[int] = []
    begin = 0
    for place in places:
        deltas += operands[begin:place]
        begin = place + 1
    deltas += operands[begin:]
    return attributes, deltas


def references(deltas: Sequence[int], holes: Sequence[int], field: str = "operands") -> list[int]:
    """The node that each back-reference means.

    Args:
        deltas: How many nodes back, one an operand.
        holes: Number of operands of each node; their sum is the number of deltas.
        field: What errors call the column.

    Raises:
        DecodeError: A reference is not to an earlier node; names the node that has it.
    """
    if not deltas:
        return []
    owners = chain.from_iterable(map(repeat, range(len(holes)), holes))
    numbers = list(map(sub, owners, deltas))
    if min(numbers) < 0 or min(deltas) < 1:
        wrong = next(i for i, delta in enumerate(deltas) if delta < 1 or numbers[i] < 0)
        node = numbers[wrong] + deltas[wrong]
        raise DecodeError(
            f"a back-reference of {deltas[wrong]} is not within 1 to {node}",
            field=field,
            node=node,
        )
    return numbers

"""Aligns the nodes of two graphs.

Nodes are matched in passes, each less strict than the previous one: first nodes that compute the
same from the same operands, recursively up to the inputs; then nodes with equal fields; then nodes
with the same target; finally nodes with the same opcode. Later passes only search between earlier
matches, so matches never cross.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from difflib import SequenceMatcher

from lazyfx.explaining.rows import Row

# Above this many pairs, common nodes no longer anchor matches, to bound the time.
_MANY_PAIRS = 4_000_000

Pair = tuple[int | None, int | None]


class Signatures:
    """Numbers that are equal for rows that a pass considers equal; common to both graphs."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def levels(self, rows: Sequence[Row]) -> list[list[int]]:
        """For each pass, one number per row."""
        own = [self._number("own", _own(row)) for row in rows]
        whole: list[int] = []
        for row, number in zip(rows, own, strict=True):
            operands = tuple(
                whole[leaf.key]  # type: ignore[call-overload]
                for leaf in row.fields.values()
                if leaf.kind == "node"
            )
            whole.append(self._number("whole", (number, operands)))
        calls = [self._number("call", _call(row)) for row in rows]
        ops = [self._number("op", row.fields["op"].key) for row in rows]
        return [whole, own, calls, ops]

    def _number(self, level: str, signature: Hashable) -> int:
        return self._numbers.setdefault((level, signature), len(self._numbers))


def align(first: Sequence[Row], second: Sequence[Row]) -> list[Pair]:
    """Pairs of positions in order; None where one graph has no such node."""
    signatures = Signatures()
    levels = list(zip(signatures.levels(first), signatures.levels(second), strict=True))
    pairs: list[Pair] = []
    _match(levels, (0, len(first)), (0, len(second)), pairs)
    return pairs


def _match(
    levels: Sequence[tuple[list[int], list[int]]],
    left: tuple[int, int],
    right: tuple[int, int],
    pairs: list[Pair],
) -> None:
    """Append the pairs of two ranges."""
    (i, end), (j, stop) = left, right
    if not levels or i == end or j == stop:
        pairs += [(k, None) for k in range(i, end)]
        pairs += [(None, k) for k in range(j, stop)]
        return
    a, b = levels[0]
    while i < end and j < stop and a[i] == b[j]:
        pairs.append((i, j))
        i, j = i + 1, j + 1
    tail: list[Pair] = []
    while i < end and j < stop and a[end - 1] == b[stop - 1]:
        end, stop = end - 1, stop - 1
        tail.append((end, stop))
    at, to = i, j
    for start, other, size in _blocks(a[i:end], b[j:stop]):
        x, y = i + start, j + other
        _match(levels[1:], (at, x), (to, y), pairs)
        pairs += [(x + k, y + k) for k in range(size)]
        at, to = x + size, y + size
    pairs += reversed(tail)


def _blocks(a: list[int], b: list[int]) -> Iterator[tuple[int, int, int]]:
    """Equal runs as (position in a, position in b, length), with an empty one at the end."""
    if len(a) == len(b):
        # If most nodes are at equal positions, match them by position: long chains of similar nodes
        # would otherwise be slow to match, and be matched off by one.
        equal = [x == y for x, y in zip(a, b, strict=True)]
        if 2 * sum(equal) >= len(a):
            yield from ((k, k, 1) for k, same in enumerate(equal) if same)
            yield len(a), len(b), 0
            return
    many = len(a) * len(b) > _MANY_PAIRS
    yield from SequenceMatcher(None, a, b, autojunk=many).get_matching_blocks()


def _own(row: Row) -> Hashable:
    """The fields of a row, without the numbers of nodes, memory, symbols and devices."""
    return tuple(
        (path, leaf.key if leaf.kind == "literal" else leaf.kind)
        for path, leaf in row.fields.items()
    )


def _call(row: Row) -> Hashable:
    target = row.fields.get("target") or row.fields.get("module.type")
    return (row.fields["op"].key, target.key if target else None)

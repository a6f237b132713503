"""Which nodes of two graphs belong together.

Nodes are matched in passes, each blinder than the one before: first those that compute the
same from the same, all the way up to the inputs; then those that say the same themselves;
then those that call the same; at last those of one opcode. Later passes look only between
what the earlier ones matched, so that matches never cross.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from difflib import SequenceMatcher

from lazyfx.explaining.rows import Row

# Above this many pairs common nodes stop anchoring matches, which keeps the time bounded.
_MANY_PAIRS = 4_000_000

Pair = tuple[int | None, int | None]


class Signatures:
    """Numbers that rows share when a pass cannot tell them apart; common to both graphs."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def levels(self, rows: Sequence[Row]) -> list[list[int]]:
        """For each pass one number a row."""
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
    """Pairs of places in order; None where one graph has no such node."""
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
    """Append the pairs of two spans."""
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
    """Equal stretches as (place in a, place in b, length), with an empty one at the end."""
    if len(a) == len(b):
        # Where most nodes are in their places, they belong there: long chains of like nodes
        # would otherwise be slow to match, and match one off.
        equal = [x == y for x, y in zip(a, b, strict=True)]
        if 2 * sum(equal) >= len(a):
            yield from ((k, k, 1) for k, same in enumerate(equal) if same)
            yield len(a), len(b), 0
            return
    many = len(a) * len(b) > _MANY_PAIRS
    yield from SequenceMatcher(None, a, b, autojunk=many).get_matching_blocks()


def _own(row: Row) -> Hashable:
    """What a row says without saying which node, memory, symbol or device."""
    return tuple(
        (path, leaf.key if leaf.kind == "literal" else leaf.kind)
        for path, leaf in row.fields.items()
    )


def _call(row: Row) -> Hashable:
    target = row.fields.get("target") or row.fields.get("module.type")
    return (row.fields["op"].key, target.key if target else None)

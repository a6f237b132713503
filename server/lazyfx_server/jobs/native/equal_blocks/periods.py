"""Finds stretches of a sequence that repeat with a period."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Final, NamedTuple

# Distances that are tried. The distance of a repeated layer is that of each call which a layer
# makes once, so it is among the most frequent ones.
_MOST_TRIED: Final = 24


class Stretch(NamedTuple):
    """Positions [start, end) whose labels repeat with a period, at least twice.

    Attributes:
        start: The first position.
        end: The position after the last one.
        period: The labels at positions i and i + period are equal within the stretch.
    """

    start: int
    end: int
    period: int

    @property
    def repeats(self) -> int:
        """How many whole periods fit into it."""
        return (self.end - self.start) // self.period

    @property
    def saved(self) -> int:
        """How many positions repeat earlier ones, counted in whole periods."""
        return (self.repeats - 1) * self.period


def best_stretch(labels: Sequence[Hashable], shortest: int) -> Stretch | None:
    """The stretch that saves most, in linear time.

    Args:
        labels: The sequence; labels that must not repeat are unique.
        shortest: The least period.

    Returns:
        None if nothing repeats.
    """
    found = [
        stretch
        for period in _likely_periods(labels, shortest)
        for stretch in _stretches(labels, period)
    ]
    # Of equal ones, that of the shorter period has more repeats, and then the first.
    return max(found, key=lambda s: (s.saved, -s.period, -s.start), default=None)


def _likely_periods(labels: Sequence[Hashable], shortest: int) -> list[int]:
    """The most frequent distances between a label and its next occurrence."""
    seen: dict[Hashable, int] = {}
    distances: Counter[int] = Counter()
    for position, label in enumerate(labels):
        distance = position - seen.get(label, position)
        if distance >= shortest:
            distances[distance] += 1
        seen[label] = position
    # A block of a long period votes once for each call that it makes once.
    return [distance for distance, _ in distances.most_common(_MOST_TRIED)]


def _stretches(labels: Sequence[Hashable], period: int) -> list[Stretch]:
    """The longest stretches of a period."""
    found = []
    start: int | None = None
    for position in range(len(labels) - period + 1):
        same = position + period < len(labels) and labels[position] == labels[position + period]
        if same and start is None:
            start = position
        elif not same and start is not None:
            if position - start >= period:
                found.append(Stretch(start, position + period, period))
            start = None
    return found

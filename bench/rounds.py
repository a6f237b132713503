"""Runs peers in turns, and compares their times.

The machine is never idle. So the peers of a comparison take turns within a round, in an order that
rotates from round to round. A ratio is computed within each round; the median of these ratios is
the result.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

Seconds = list[float]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        section: The comparison that it belongs to.
        name: What was measured.
        samples: One value for each round.
        unit: Of the samples: "ms" or "calls/s".
        against: The peer's samples, round by round.
        target: Maximum of the ratio; with `at_least`, the minimum.
        note: A remark for readers.
    """

    section: str
    name: str
    samples: Seconds
    unit: str = "ms"
    against: Seconds = field(default_factory=list)
    target: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Our samples divided by the peer's, round by round; the inverse for `at_least`."""
        pairs = zip(self.samples, self.against, strict=False)
        return [b / a if self.at_least else a / b for a, b in pairs]

    @property
    def ratio(self) -> float | None:
        """The median of the ratios."""
        return statistics.median(self.ratios) if self.against else None

    @property
    def verdict(self) -> str:
        """The verdict: "met", "missed", or empty if there is no target."""
        if self.target is None or self.ratio is None:
            return ""
        met = self.ratio >= self.target if self.at_least else self.ratio <= self.target
        return "met" if met else "missed"

    def figures(self) -> dict[str, object]:
        """The row for a JSON file."""
        return {
            "section": self.section,
            "name": self.name,
            "unit": self.unit,
            **dict(zip(("min", "p25", "median", "p75"), spread(self.samples), strict=True)),
            "rounds": len(self.samples),
            "ratio": self.ratio,
            "ratio_p25_p75": list(spread(self.ratios)[1::2]) if self.against else None,
            "target": self.target,
            "verdict": self.verdict,
            "note": self.note,
        }


def spread(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Least value, lower quartile, median, upper quartile."""
    if len(values) == 1:
        return (values[0],) * 4
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return min(values), low, middle, high


def take_turns(
    peers: Sequence[Callable[[], float]], rounds: int, *, warmup: int = 1
) -> list[Seconds]:
    """Measure each peer once in each round.

    Args:
        peers: Each does its work once and returns its measurement.
        rounds: Rounds that count.
        warmup: Rounds before those.
    """
    taken: list[Seconds] = [[] for _ in peers]
    for number in range(warmup + rounds):
        for i in _order(len(peers), number):
            gc.collect()
            measured = peers[i]()
            if number >= warmup:
                taken[i].append(measured)
    return taken


async def take_turns_calling(
    peers: Sequence[Callable[[], Awaitable[object]]], rounds: int, calls: int
) -> list[Seconds]:
    """For each round, the median seconds of `calls` calls of each peer.

    Peers take turns call by call, one call in flight. The first round does not count.
    """
    taken: list[Seconds] = [[] for _ in peers]
    for number in range(1 + rounds):
        burst: list[Seconds] = [[] for _ in peers]
        gc.collect()
        for call in range(calls):
            for i in _order(len(peers), call):
                started = perf_counter()
                await peers[i]()
                burst[i].append(perf_counter() - started)
        if number:
            for samples, of_round in zip(taken, burst, strict=True):
                samples.append(statistics.median(of_round))
    return taken


def timed_calls(peers: Sequence[Callable[[], object]], rounds: int, calls: int) -> list[Seconds]:
    """As `take_turns_calling`, for blocking calls."""
    taken: list[Seconds] = [[] for _ in peers]
    for number in range(1 + rounds):
        burst: list[Seconds] = [[] for _ in peers]
        gc.collect()
        for call in range(calls):
            for i in _order(len(peers), call):
                started = perf_counter()
                peers[i]()
                burst[i].append(perf_counter() - started)
        if number:
            for samples, of_round in zip(taken, burst, strict=True):
                samples.append(statistics.median(of_round))
    return taken


def _order(count: int, number: int) -> list[int]:
    start = number % count
    return [*range(start, count), *range(start)]

"""Estimates of how long jobs take, from how long earlier ones took."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from cachetools import LRUCache

_MAX_JOBS = 16_384
_MAX_FAMILIES = 1024
# Weight of the newest measurement in a moving average.
_NEWEST: Final = 0.3
# A family needs this many measurements before anything is refused because of it.
_ENOUGH: Final = 3
# What a job certainly takes, as a part of what is expected. Machines are loaded now and then, and
# graphs of one size differ more than repetitions of one graph.
_SURE_OF_SAME_JOB: Final = 0.5
_SURE_OF_FAMILY: Final = 0.25


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a job will take.

    Attributes:
        seconds: The expected duration.
        at_least: A duration that it will hardly fall below; 0 if too little is known. Work is
            refused by this one, so that a wrong estimate does not refuse good work.
    """

    seconds: float
    at_least: float


@dataclass(frozen=True, slots=True)
class Rate:
    """How long a job takes about which nothing is known.

    Attributes:
        seconds_per_byte: Seconds per byte of its graph.
        overhead_bytes: The size of a graph that takes as long as the fixed costs of a job.
    """

    seconds_per_byte: float
    overhead_bytes: int


# Measured: 0.2 s for GPT-2 (17.7 KB) through a usual pipeline, some ms for a tiny graph.
PASS_JOBS: Final = Rate(1e-5, 2048)
# Measured: 30 to 60 s for the graphs of transformers (some 250 KB), seconds for a tiny one.
NATIVE_JOBS: Final = Rate(1.5e-4, 32_768)


@dataclass(frozen=True, slots=True)
class JobKind:
    """What the duration of a job depends on.

    Attributes:
        same: Equal for jobs that do the same work.
        family: Equal for jobs that do the same to different graphs of one tenant: one pipeline,
            one kind of artifact. What takes one tenant long says nothing about another's.
        size: Bytes of the graph.
        is_claimed: Whether only the caller says that it has this size. Nobody is refused by it.
    """

    same: bytes
    family: bytes
    size: int
    is_claimed: bool = False


class CostEstimates:
    """Learns from finished jobs. Both of its tables are bounded.

    Args:
        unknown: The rate of jobs of a family that has not run yet.
        longest: The time limit of a job, which none exceeds.
    """

    def __init__(self, unknown: Rate, longest: float = math.inf) -> None:
        self._unknown = unknown
        self._longest = longest
        self._same: LRUCache[bytes, tuple[float, float]] = LRUCache(_MAX_JOBS)
        self._families: LRUCache[bytes, tuple[float, int]] = LRUCache(_MAX_FAMILIES)

    def of(self, kind: JobKind) -> Estimate:
        """How long a job of this kind will take."""
        if (known := self._same.get(kind.same)) is not None:
            usual, fastest = known
            return self._bounded(usual, _SURE_OF_SAME_JOB * fastest)
        rate, measured = self._families.get(kind.family, (self._unknown.seconds_per_byte, 0))
        seconds = rate * self._size(kind)
        is_sure = measured >= _ENOUGH and not kind.is_claimed
        return self._bounded(seconds, _SURE_OF_FAMILY * seconds if is_sure else 0.0)

    def record(self, kind: JobKind, seconds: float) -> None:
        """Record how long a job took that has succeeded."""
        usual, fastest = self._same.get(kind.same, (seconds, seconds))
        self._same[kind.same] = (
            usual + _NEWEST * (seconds - usual),
            min(fastest, seconds),
        )
        rate = seconds / self._size(kind)
        usual, measured = self._families.get(kind.family, (rate, 0))
        self._families[kind.family] = (usual + _NEWEST * (rate - usual), measured + 1)

    def _bounded(self, seconds: float, at_least: float) -> Estimate:
        return Estimate(min(seconds, self._longest), min(at_least, self._longest))

    def _size(self, kind: JobKind) -> int:
        return kind.size + self._unknown.overhead_bytes

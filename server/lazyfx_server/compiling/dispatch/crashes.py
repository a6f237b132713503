"""Tracks graphs on which workers die: they are retried once, then refused for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cachetools import TTLCache

from lazyfx_server.errors import CrashingGraphError

_log = logging.getLogger(__name__)

MAX_DEATHS: Final = 2
"""Number of worker deaths after which a graph is refused."""
_MAX_GRAPHS: Final = 4096


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of a job.

    Attributes:
        tenant: Tag of the tenant: a graph is never refused because of another tenant's jobs.
        graph: Digest of the graph.
    """

    tenant: bytes
    graph: bytes


class CrashTracker:
    """Remembers graphs on which workers have died, by tenant and kind of job.

    Args:
        seconds: How long a graph is remembered after the last death; 0 disables this.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._deaths: TTLCache[tuple[str, Subject], tuple[int, float]] = TTLCache(
            _MAX_GRAPHS, ttl=max(seconds, 1e-9), timer=clock
        )

    def __len__(self) -> int:
        return len(self._deaths)

    def check(self, job: str, subject: Subject) -> None:
        """Refuse a graph on which workers keep dying.

        Args:
            job: The kind of job: "compile", "render", "native".
            subject: Its subject.

        Raises:
            CrashingGraphError: Names the graph and says for how long it is refused.
        """
        count, last = self._deaths.get((job, subject), (0, 0.0))
        if count >= MAX_DEATHS:
            raise self.refusal(job, subject, self._seconds - (self._clock() - last))

    def record_death(self, job: str, subject: Subject, how: str) -> None:
        """Record that a worker died on a job about this subject."""
        count = self._deaths.get((job, subject), (0, 0.0))[0] + 1
        self._deaths[job, subject] = (count, self._clock())
        _log.warning("a worker died on a %s job of graph %s: %s", job, subject.graph.hex(), how)

    def record_survival(self, job: str, subject: Subject) -> None:
        """Record that a job about this subject finished, so it did not cause earlier deaths."""
        self._deaths.pop((job, subject), None)

    def refusal(
        self, job: str, subject: Subject, seconds: float | None = None
    ) -> CrashingGraphError:
        """The error for a graph on which workers die."""
        left = self._seconds if seconds is None else seconds
        return CrashingGraphError(
            f"worker processes died on {MAX_DEATHS} attempts to run a {job} job of graph "
            f"{subject.graph.hex()}; it is refused for {max(left, 0.0):.0f} s. Other graphs are "
            "still served; report this graph to the operator of the server"
        )

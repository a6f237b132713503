"""Continuing failures: logged when they begin and end, and counted in between."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_log = logging.getLogger(__name__)

COUNT_SECONDS: Final = 60.0
"""How often a continuing outage is logged, with a count."""

QUIET_SECONDS: Final = 5.0
"""A success ends an outage only if nothing has failed for this long: a nearly full disk accepts
small entries and refuses large ones."""


@dataclass(slots=True)
class _Outage:
    failures: int
    last: float
    reported: float


class Outages:
    """Logs when something begins to fail, and when it works again.

    Args:
        clock: A monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[str, _Outage] = {}

    def failed(self, what: str, error: object) -> None:
        """Record a failure.

        Args:
            what: What failed, e.g. "store: put of disk".
            error: The error.
        """
        now = self._clock()
        outage = self._open.get(what)
        if outage is None:
            self._open[what] = _Outage(1, now, now)
            _log.warning("%s failed: %s; further failures are counted", what, error)
            return
        outage.failures += 1
        outage.last = now
        if now - outage.reported >= COUNT_SECONDS:
            outage.reported = now
            _log.warning("%s still fails: %d times so far: %s", what, outage.failures, error)

    def recovered(self, what: str) -> None:
        """Record a success of something that may have failed before."""
        outage = self._open.get(what)
        if outage is not None and self._clock() - outage.last >= QUIET_SECONDS:
            del self._open[what]
            _log.warning("%s works again; it failed %d times", what, outage.failures)

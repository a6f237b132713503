"""Times of use that never go back, whatever happens to the clock of the machine.

Files are evicted by their times of use. If the clock has been ahead for a while, its files would
look newer than all that are used from then on, for as long as it was ahead: what is used most would
be evicted first. So the time of a use is later than that of every use before it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class UseClock:
    """Gives the time of each use, in nanoseconds since 1970, as the machine's clock has it.

    Args:
        clock: The clock of the machine.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._latest = 0
        self._lock = threading.Lock()

    def saw(self, moment: int) -> None:
        """Take note of the time of a use by another process, or before this one started."""
        with self._lock:
            self._latest = max(self._latest, moment)

    def now(self) -> int:
        """The time of a use that happens now: later than all others."""
        with self._lock:
            # File systems with coarse times keep microseconds.
            self._latest = max(self._clock(), self._latest + 1000)
            return self._latest

"""A time limit for one pass."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from types import FrameType


class OutOfTime(BaseException):
    """A pass exceeded its time limit."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block with OutOfTime if it takes longer.

    In the main thread, where workers run their jobs, a timer interrupts the block between two
    Python instructions; a call into native code runs to its end, unless the time limit of the whole
    job expires first. In other threads the time is only checked at the end.

    Args:
        seconds: The bound; 0 for none.

    Raises:
        OutOfTime: The block took longer.
    """
    if not seconds:
        yield
        return
    started = perf_counter()
    if threading.current_thread() is threading.main_thread():
        with _timer(seconds):
            yield
    else:
        yield
    if perf_counter() - started > seconds:
        raise OutOfTime


@contextmanager
def _timer(seconds: float) -> Iterator[None]:
    def ring(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTime

    earlier = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, earlier)

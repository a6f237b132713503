"""A bound on the time of one pass."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from types import FrameType


class OutOfTime(BaseException):
    """A pass overran its time."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends the block with OutOfTime when it takes longer.

    In the main thread, where workers run their jobs, a timer interrupts the block between two
    of Python's instructions; a call into native code is let finish, and only the bound of the
    whole job ends it sooner. In other threads the time is looked at in the end.

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

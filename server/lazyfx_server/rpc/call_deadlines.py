"""Cancels calls that take too long, with one timer for all of them.

All calls may take equally long, so the oldest one is the first to be overdue.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Deadline:
    """The deadline of one call.

    Attributes:
        passed: Whether the call was cancelled because of it.
    """

    __slots__ = ("at", "passed", "task")

    def __init__(self, at: float, task: asyncio.Task[Any]) -> None:
        self.at = at
        self.task = task
        self.passed = False


class Deadlines:
    """The deadlines of the calls of one event loop.

    Args:
        seconds: How long each call may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # Oldest first.
        self._running: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self) -> Deadline:
        """The deadline of a call that begins now, in the current task."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None, "calls run in tasks"
        deadline = Deadline(loop.time() + self._seconds, task)
        self._running[deadline] = None
        if self._timer is None:
            self._timer = loop.call_at(deadline.at, self._cancel_overdue)
        return deadline

    def end(self, deadline: Deadline) -> None:
        """The call has ended."""
        self._running.pop(deadline, None)

    def _cancel_overdue(self) -> None:
        assert self._loop is not None, "a call has begun"
        now = self._loop.time()
        self._timer = None
        for deadline in list(self._running):
            if deadline.at > now:
                self._timer = self._loop.call_at(deadline.at, self._cancel_overdue)
                return
            deadline.passed = True
            self._running.pop(deadline)
            deadline.task.cancel()

"""Which worker runs the next job: one that has run only jobs of the same owner."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from lazyfx_server.execution.executor import ExecutionError
from lazyfx_server.execution.worker_process import Worker


@dataclass(eq=False, slots=True)
class _Caller:
    """A caller that waits for a worker.

    Attributes:
        owner: The owner of the job; None if any worker may run it.
        found: The worker.
        is_next: Whether it has a turn, and only waits until a worker for it has started.
    """

    owner: str | None
    found: asyncio.Future[Worker]
    is_next: bool = False


class IdleWorkers:
    """Idle workers, the most recently used one last, and the callers that wait for one.

    Callers have their turns in FIFO order. Of the workers that may run the job of a caller, the
    most recently used one is taken.

    Args:
        most_busy: How many workers may be taken at the same time. There are always at least as many
            that run, start or are being replaced, so that a caller with a turn gets one.
        make_room: Called when all idle workers belong to other owners: starts a worker, or
            retires the one that it is given, the least recently used, which a new one replaces.
    """

    def __init__(self, most_busy: int, make_room: Callable[[Worker], None]) -> None:
        self._most_busy = most_busy
        self._make_room = make_room
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._waiting: list[_Caller] = []

    async def take(self, owner: str | None) -> Worker:
        """Wait for a worker that has run only jobs of this owner, if any; it is then busy."""
        caller = _Caller(owner, asyncio.get_running_loop().create_future())
        self._waiting.append(caller)
        self._serve()
        try:
            return await caller.found
        except asyncio.CancelledError:
            if caller in self._waiting:
                self._waiting.remove(caller)
                self._serve()  # its turn is another's
            elif not caller.found.cancelled() and caller.found.exception() is None:
                self.put(caller.found.result())
            raise

    def put(self, worker: Worker) -> None:
        """A worker is idle: it has started, or its job has ended."""
        self._busy.discard(worker)
        self._idle.append(worker)
        self._serve()

    def remove(self, worker: Worker) -> None:
        """A worker has ended."""
        self._busy.discard(worker)
        with contextlib.suppress(ValueError):
            self._idle.remove(worker)
        self._serve()

    def usable(self) -> list[Worker]:
        """The idle workers that can run jobs."""
        return [worker for worker in self._idle if worker.usable]

    def refuse(self, error: ExecutionError, *, only_next: bool = False) -> None:
        """Let all callers fail, or only those that wait for a worker to start."""
        for caller in self._waiting:
            if not caller.found.done() and (caller.is_next or not only_next):
                caller.found.set_exception(error)
        self._waiting = [caller for caller in self._waiting if not caller.found.done()]

    def _serve(self) -> None:
        """Give workers to the callers whose turn it is."""
        self._waiting = [caller for caller in self._waiting if not caller.found.done()]
        turns = self._most_busy - len(self._busy) - sum(c.is_next for c in self._waiting)
        for caller in tuple(self._waiting):
            if not caller.is_next:
                if turns <= 0:
                    continue
                turns -= 1
            if (worker := self._pop(caller.owner)) is not None:
                self._busy.add(worker)
                self._waiting.remove(caller)
                caller.found.set_result(worker)
            elif not caller.is_next:
                caller.is_next = True
                if others := self.usable():
                    self._make_room(others[0])

    def _pop(self, owner: str | None) -> Worker | None:
        self._idle = self.usable()
        for place in reversed(range(len(self._idle))):
            worker = self._idle[place]
            if owner is None or worker.owner in (None, owner):
                del self._idle[place]
                worker.owner = owner if owner is not None else worker.owner
                return worker
        return None

"""Admission: a bounded queue in front of the workers, fair between tenants, aware of deadlines."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from lazyfx_server.compiling.limits.cost_estimates import (
    NATIVE_JOBS,
    PASS_JOBS,
    CostEstimates,
    Estimate,
    JobKind,
    Rate,
)
from lazyfx_server.compiling.limits.fair_queue import FairQueue, Ticket
from lazyfx_server.compiling.limits.urgency import RANK_NAMES, JointUrgency
from lazyfx_server.errors import DeadlineTooShortError, OverloadedError, UnavailableError
from lazyfx_server.settings.limits import CallLimits
from lazyfx_server.telemetry import (
    Event,
    JobStarted,
    Observer,
    PoolName,
    RefusalReason,
    WorkRefused,
)

# A job that takes at least this long leaves one worker to shorter ones.
LONG_SECONDS: Final = 5.0
_SHORTEST_RETRY: Final = 0.1


@dataclass(frozen=True, slots=True)
class Pool:
    """A kind of workers.

    Attributes:
        name: Its name in metrics.
        unknown: The rate of its jobs of which none has run yet.
        keeps_one_free: Whether long jobs leave one worker to short ones.
    """

    name: PoolName
    unknown: Rate
    keeps_one_free: bool


PASS_POOL: Final = Pool("pass", PASS_JOBS, keeps_one_free=True)
"""Workers that run passes and render artifacts: most jobs take milliseconds, a few minutes."""
NATIVE_POOL: Final = Pool("native", NATIVE_JOBS, keeps_one_free=False)
"""Workers of native compiles, which all take long."""


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job that asks for a worker.

    Attributes:
        tenant: Its tenant.
        kind: What its duration depends on.
        urgency: How soon its callers need it.
    """

    tenant: str
    kind: JobKind
    urgency: JointUrgency = field(default_factory=JointUrgency)


class Admission:
    """Lets `slots` jobs run and a bounded amount of work wait; refuses all other work at once.

    The next job is that of the tenant that has been served least, in seconds of workers, and of
    that tenant the one with the highest priority: a tenant with much work delays only its own.
    When the queue is full, a new job of a tenant with less work in it displaces the last job of the
    tenant with the most.

    Args:
        slots: Number of concurrent jobs.
        limits: Bounds on calls.
        pool: The kind of workers.
        observer: Notified of jobs that start and of refusals.
        pressure: Returns why no new work is accepted at present, or None.
        longest: The time limit of a job in seconds.
    """

    def __init__(
        self,
        slots: int,
        limits: CallLimits,
        pool: Pool = PASS_POOL,
        observer: Observer | None = None,
        pressure: Callable[[], UnavailableError | None] | None = None,
        *,
        longest: float = math.inf,
    ) -> None:
        self._slots = slots
        self._free = slots
        self._most_jobs = limits.bound("max_queue")
        self._most_seconds = limits.bound("max_queue_seconds")
        self._pool = pool
        self._observer = observer
        self._pressure = pressure
        self._estimates = CostEstimates(pool.unknown, longest)
        self._queue = FairQueue()
        self._serials = itertools.count()
        self._turns: dict[Ticket, asyncio.Future[None]] = {}
        self._running: dict[Ticket, float] = {}

    @property
    def waiting(self) -> int:
        """The number of waiting jobs."""
        return len(self._queue)

    @property
    def backlog_seconds(self) -> float:
        """Estimated seconds in which the workers would finish all waiting and running jobs."""
        left = sum(estimate.seconds for estimate in self._left_to_run())
        return (self._queue.seconds + left) / self._slots

    def usual_seconds(self, kind: JobKind) -> float | None:
        """How long a job of this kind takes; None if none like it has run yet."""
        estimate = self._estimates.of(kind)
        return estimate.seconds if estimate.at_least else None

    @asynccontextmanager
    async def slot(self, work: QueuedJob) -> AsyncIterator[float]:
        """Hold a slot; yields the seconds spent waiting for it.

        Args:
            work: The job.

        Raises:
            OverloadedError: The queue is full; says when to retry.
            DeadlineTooShortError: The job would not end before its callers stop waiting.
            UnavailableError: No new work is accepted at present.
        """
        arrived = time.monotonic()
        ticket = await self._admit(work)
        started = self._running[ticket] = time.monotonic()
        waited = started - arrived
        self._observe(JobStarted(self._pool.name, RANK_NAMES[ticket.rank], waited))
        try:
            yield waited
            self._estimates.record(work.kind, time.monotonic() - started)
        finally:
            self._end(ticket, time.monotonic() - started)

    def resize(self, slots: int) -> None:
        """Change the number of slots; jobs that hold one keep it."""
        self._free += slots - self._slots  # below 0, more jobs run than there are slots
        self._slots = slots
        self._start_waiting()

    async def _admit(self, work: QueuedJob) -> Ticket:
        """Queue until it is the turn of a job."""
        if self._pressure is not None and (refusal := self._pressure()) is not None:
            self._refused("memory")
            raise refusal
        estimate = self._estimates.of(work.kind)
        ticket = Ticket(work.tenant, estimate, work.urgency.rank, next(self._serials))
        self._check_deadline(work, estimate)
        turn = self._turns[ticket] = asyncio.get_running_loop().create_future()
        self._queue.add(ticket)
        self._start_waiting()
        if not turn.done():
            self._make_room(ticket)
            work.urgency.watch(lambda: self._queue.reorder(ticket, work.urgency.rank))
        try:
            await turn
        except asyncio.CancelledError:
            if not self._queue.remove(ticket) and ticket in self._running:
                self._end(ticket, 0.0)
            raise
        finally:
            work.urgency.watch(None)
            self._turns.pop(ticket, None)
        return ticket

    def _start_waiting(self) -> None:
        """Give free slots to waiting jobs."""
        while self._free > 0 and (ticket := self._queue.start_next(self._may_start)) is not None:
            self._free -= 1
            self._running[ticket] = time.monotonic()
            self._turns[ticket].set_result(None)

    def _may_start(self, ticket: Ticket) -> bool:
        """Whether enough slots stay for short jobs, if this one starts."""
        if not _is_long(ticket) or not self._pool.keeps_one_free or self._slots == 1:
            return True
        return sum(map(_is_long, self._running)) < self._slots - 1

    def _end(self, ticket: Ticket, seconds: float) -> None:
        del self._running[ticket]
        self._free += 1
        self._queue.finish(ticket, seconds)
        self._start_waiting()

    def _check_deadline(self, work: QueuedJob, estimate: Estimate) -> None:
        """Refuse a job whose callers would not wait until it ends.

        Raises:
            DeadlineTooShortError: Says when it would, unless the job alone takes too long.
        """
        left = work.urgency.deadline - time.monotonic()
        if left == math.inf:
            return
        ahead: list[Estimate] = []
        if self._free <= 0:
            ahead = [
                *self._left_to_run(), *self._queue.ahead_of(work.tenant, work.urgency.rank)
            ]  # fmt: skip
        least_wait = sum(job.at_least for job in ahead) / self._slots
        if least_wait + estimate.at_least <= left:
            return
        self._refused("deadline")
        wait = sum(job.seconds for job in ahead) / self._slots
        told = (
            f"the job would wait about {wait:.1f} s for a worker and then take about "
            f"{estimate.seconds:.1f} s, but the call ends in {left:.1f} s"
        )
        if estimate.at_least > left:
            raise DeadlineTooShortError(f"{told}; allow more with its timeout")
        raise DeadlineTooShortError(
            f"{told}; try again later, or allow more with its timeout",
            retry_after=_delay(wait + estimate.seconds - left),
        )

    def _make_room(self, ticket: Ticket) -> None:
        """Refuse the new job, or the last ones of its own tenant or of one with more work.

        Raises:
            OverloadedError: The new job is refused; says when to retry.
        """
        while True:
            too_many = len(self._queue) > self._most_jobs.most
            seconds = self._queue.seconds / self._slots
            # A single job may wait, however long it takes.
            if not too_many and (seconds <= self._most_seconds.most or len(self._queue) == 1):
                return
            last = self._queue.last_to_wait(ticket, by_seconds=not too_many)
            refusal = OverloadedError(
                f"{len(self._queue) - 1} jobs are already waiting for a worker{self._most_jobs}"
                if too_many
                else f"the waiting jobs would take the workers {seconds:.0f} s{self._most_seconds}",
                retry_after=_delay(self.backlog_seconds),
            )
            self._queue.remove(last)
            self._refused("queue")
            if last is ticket:
                del self._turns[ticket]
                raise refusal
            if not (turn := self._turns[last]).done():
                turn.set_exception(refusal)

    def _left_to_run(self) -> list[Estimate]:
        """What is left of the running jobs; metrics call this in another thread."""
        now = time.monotonic()
        left = []
        for ticket, started in list(self._running.items()):
            spent, estimate = now - started, ticket.estimate
            left.append(
                Estimate(max(0.0, estimate.seconds - spent), max(0.0, estimate.at_least - spent))
            )
        return left

    def _refused(self, reason: RefusalReason) -> None:
        self._observe(WorkRefused(self._pool.name, reason))

    def _observe(self, event: Event) -> None:
        if self._observer is not None:
            self._observer.observe(event)


def _is_long(ticket: Ticket) -> bool:
    return ticket.estimate.seconds >= LONG_SECONDS


def _delay(seconds: float) -> float:
    return round(max(_SHORTEST_RETRY, seconds), 3)

"""A queue that is fair between tenants by the seconds that their jobs take.

Start-time fair queueing (Goyal, Vin, Cheng: "Start-time fair queueing", SIGCOMM 1996): each tenant
has a virtual time, which a job of it advances by its cost, and the tenant with the least is next. A
tenant that comes back after a pause starts at the time of the queue, so that it neither waits for
what others had before nor catches up on what it did not use.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from cachetools import LRUCache

from lazyfx_server.compiling.limits.cost_estimates import Estimate

# Tenants whose time is remembered after their last job.
_MAX_REMEMBERED: Final = 4096


@dataclass(eq=False, slots=True)
class Ticket:
    """One job in the queue.

    Attributes:
        tenant: The tenant of the job.
        estimate: How long it will take.
        rank: Its priority: among the jobs of one tenant, the lowest goes first.
        serial: Its place among jobs of one rank.
    """

    tenant: str
    estimate: Estimate
    rank: int
    serial: int

    @property
    def order(self) -> tuple[int, int]:
        """Its position among the jobs of its tenant."""
        return self.rank, self.serial


_ORDER: Final = attrgetter("order")


@dataclass(slots=True)
class _Line:
    """The jobs of one tenant.

    Attributes:
        taken: Its virtual time, in seconds that its jobs really took.
        expected: Estimated seconds of its running jobs.
        waiting: Its waiting jobs, the next one first.
        running: The number of its running jobs.
    """

    taken: float
    expected: float = 0.0
    waiting: list[Ticket] = field(default_factory=list)
    running: int = 0

    @property
    def served(self) -> float:
        """Its virtual time if its running jobs take as long as estimated."""
        return self.taken + self.expected

    @property
    def seconds(self) -> float:
        return sum(ticket.estimate.seconds for ticket in self.waiting)


class FairQueue:
    """The waiting jobs of all tenants.

    Attributes:
        seconds: Estimated seconds of all waiting jobs.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._count = 0
        self._now = 0.0
        self._lines: dict[str, _Line] = {}
        self._left: LRUCache[str, float] = LRUCache(_MAX_REMEMBERED)

    def __len__(self) -> int:
        return self._count

    def add(self, ticket: Ticket) -> None:
        """Add a job."""
        line = self._lines.get(ticket.tenant)
        if line is None:
            since = max(self._now, self._left.pop(ticket.tenant, 0.0))
            line = self._lines[ticket.tenant] = _Line(since)
        insort(line.waiting, ticket, key=_ORDER)
        self._count += 1
        self.seconds += ticket.estimate.seconds

    def remove(self, ticket: Ticket) -> bool:
        """Remove a waiting job; returns whether it was waiting."""
        line = self._lines.get(ticket.tenant)
        if line is None or not self._take(line, ticket):
            return False
        self._drop_idle(ticket.tenant, line)
        return True

    def reorder(self, ticket: Ticket, rank: int) -> None:
        """Give a job another rank, if it still waits."""
        line = self._lines.get(ticket.tenant)
        if line is not None and self._take(line, ticket):
            ticket.rank = rank
            self.add(ticket)

    def start_next(self, may_start: Callable[[Ticket], bool]) -> Ticket | None:
        """Take the next job out of the queue; None if none may start.

        Args:
            may_start: Whether a job may start now; if not, others go first.
        """
        best: tuple[_Line, Ticket] | None = None
        for line in self._lines.values():
            if line.waiting and (best is None or line.served < best[0].served):
                ticket = next(filter(may_start, line.waiting), None)
                if ticket is not None:
                    best = line, ticket
        if best is None:
            return None
        line, ticket = best
        self._take(line, ticket)
        # Not by estimates: they may be wrong, and the time of the queue never goes back.
        self._now = max(self._now, line.taken)
        line.expected += ticket.estimate.seconds
        line.running += 1
        return ticket

    def finish(self, ticket: Ticket, seconds: float) -> None:
        """Charge the tenant of a started job for the seconds that it really took."""
        line = self._lines[ticket.tenant]
        line.running -= 1
        # Sums of floats drift.
        line.expected = line.expected - ticket.estimate.seconds if line.running else 0.0
        line.taken += seconds
        self._drop_idle(ticket.tenant, line)

    def ahead_of(self, tenant: str, rank: int) -> Iterator[Estimate]:
        """The waiting jobs that would start before a new one, at most.

        Until a tenant has been served its own earlier jobs, another gets about as much.
        """
        own = self._lines.get(tenant)
        waiting = own.waiting if own is not None else []
        mine = [ticket.estimate for ticket in waiting if ticket.rank <= rank]
        yield from mine
        served = max(self._now, self._left.get(tenant, 0.0)) if own is None else own.served
        until = served + sum(estimate.seconds for estimate in mine)
        for name, line in self._lines.items():
            if name == tenant:
                continue
            time = line.served
            for ticket in line.waiting:
                if time > until:
                    break
                yield ticket.estimate
                time += ticket.estimate.seconds

    def last_to_wait(self, new: Ticket, *, by_seconds: bool) -> Ticket:
        """The job that must leave a full queue because of a new one.

        It is the last one of the tenant with the most work in the queue. If no tenant has more
        than that of the new job, it is the last one of that tenant: the new job itself, unless one
        with a lower priority waits.

        Args:
            new: The new job, which is in the queue.
            by_seconds: Whether work is counted in seconds; otherwise in jobs.
        """

        def amount(line: _Line) -> float:
            return line.seconds if by_seconds else len(line.waiting)

        own = self._lines[new.tenant]
        most = max((line for line in self._lines.values() if line.waiting), key=amount)
        return (most if amount(most) > amount(own) else own).waiting[-1]

    def _take(self, line: _Line, ticket: Ticket) -> bool:
        index = bisect_left(line.waiting, ticket.order, key=_ORDER)
        if index == len(line.waiting) or line.waiting[index] is not ticket:
            return False
        del line.waiting[index]
        self._count -= 1
        # Sums of floats drift.
        self.seconds = self.seconds - ticket.estimate.seconds if self._count else 0.0
        return True

    def _drop_idle(self, tenant: str, line: _Line) -> None:
        if not line.waiting and not line.running:
            self._left[tenant] = line.taken
            del self._lines[tenant]

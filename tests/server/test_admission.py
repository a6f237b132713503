"""Admission: fair between tenants by cost, ordered by priority, aware of deadlines."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.key import ModuleKey
from lazyfx_server.compiling.limits.admission import LONG_SECONDS, Admission, QueuedJob
from lazyfx_server.compiling.limits.cost_estimates import (
    PASS_JOBS,
    CostEstimates,
    Estimate,
    JobKind,
)
from lazyfx_server.compiling.limits.fair_queue import FairQueue, Ticket
from lazyfx_server.compiling.limits.held_bytes import RequestMemory
from lazyfx_server.compiling.limits.urgency import JointUrgency, Urgency
from lazyfx_server.compiling.request import IncomingCompile, kind_of_job
from lazyfx_server.errors import DeadlineTooShortError, OverloadedError, UnavailableError
from lazyfx_server.settings.limits import CallLimits

T = TypeVar("T")
INTERACTIVE, BATCH, PREWARM = 1, 2, 3


def _ticket(tenant: str, seconds: float, serial: int, rank: int = INTERACTIVE) -> Ticket:
    return Ticket(tenant, Estimate(seconds, seconds), rank, serial)


def _drained(queue: FairQueue) -> list[Ticket]:
    """All jobs of a queue in their order on one worker, each as long as estimated."""
    order = []
    while (ticket := queue.start_next(lambda _: True)) is not None:
        queue.finish(ticket, ticket.estimate.seconds)
        order.append(ticket)
    return order


def test_tenants_get_equal_seconds_not_equal_counts() -> None:
    queue = FairQueue()
    for serial in range(20):
        queue.add(_ticket("slow", 5.0, serial))
    for serial in range(20, 120):
        queue.add(_ticket("fast", 1.0, serial))
    served = {"slow": 0.0, "fast": 0.0}
    for ticket in _drained(queue):
        served[ticket.tenant] += ticket.estimate.seconds
        if len(queue):
            # Never further apart than one job of each.
            assert abs(served["slow"] - served["fast"]) <= 6.0
    assert served == {"slow": 100.0, "fast": 100.0}


def test_a_tenant_pays_what_its_jobs_really_took() -> None:
    queue = FairQueue()
    for serial in range(8):
        queue.add(_ticket("liar", 0.001, serial))
    for serial in range(8, 16):
        queue.add(_ticket("honest", 1.0, serial))
    order = []
    while (ticket := queue.start_next(lambda _: True)) is not None:
        queue.finish(ticket, 1.0)
        order.append(ticket.tenant)
    assert order[:8].count("liar") == 4


def test_a_tenant_that_returns_neither_waits_for_the_past_nor_catches_up() -> None:
    queue = FairQueue()
    for serial in range(100):
        queue.add(_ticket("early", 1.0, serial))
    for _ in range(50):
        queue.finish(queue.start_next(lambda _: True), 1.0)  # type: ignore[arg-type]
    for serial in range(100, 110):
        queue.add(_ticket("late", 1.0, serial))
    order = [ticket.tenant for ticket in _drained(queue)]
    assert order[:2].count("late") == 1
    assert order[:20].count("late") == 10


def test_a_wrong_estimate_gives_nobody_a_head_start() -> None:
    queue = FairQueue()
    queue.add(_ticket("liar", 1e6, 0))
    queue.add(_ticket("liar", 1e6, 1))
    first, second = (queue.start_next(lambda _: True) for _ in range(2))
    assert first is not None
    assert second is not None
    queue.finish(first, 0.01)
    for serial in range(2, 22):
        queue.add(_ticket("liar", 1.0, serial))
        queue.add(_ticket("honest", 1.0, 100 + serial))
    queue.finish(second, 0.01)
    order = [ticket.tenant for ticket in _drained(queue)]
    assert order[:10].count("liar") == 5


def test_priority_orders_within_the_share_of_a_tenant() -> None:
    queue = FairQueue()
    for serial in range(6):
        queue.add(_ticket("quiet", 1.0, serial, PREWARM))
    for serial in range(6, 12):
        queue.add(_ticket("pushy", 1.0, serial, INTERACTIVE))
    queue.add(_ticket("quiet", 1.0, 12, BATCH))
    queue.add(_ticket("quiet", 1.0, 13, INTERACTIVE))
    order = _drained(queue)
    assert [t.rank for t in order if t.tenant == "quiet"] == [1, 2, 3, 3, 3, 3, 3, 3]
    assert [t.tenant for t in order[:8]].count("quiet") == 4


def _run(scenario: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(scenario)


def _work(tenant: str = "t", same: bytes = b"", urgency: Urgency | None = None) -> QueuedJob:
    return QueuedJob(tenant, JobKind(same, b"family", 0), JointUrgency(urgency))


class _Jobs:
    """Jobs in an admission, which end when they are told to."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.order: list[str] = []
        self._release: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def add(self, name: str, work: QueuedJob) -> asyncio.Task[None]:
        self._release[name] = asyncio.Event()
        task = self._tasks[name] = asyncio.ensure_future(self._job(name, work))
        await asyncio.sleep(0)
        return task

    async def _job(self, name: str, work: QueuedJob) -> None:
        async with self.admission.slot(work):
            self.order.append(name)
            await self._release[name].wait()

    async def end(self, *names: str) -> None:
        for name in names:
            self._release[name].set()
            await asyncio.wait({self._tasks[name]})
            await asyncio.sleep(0)


async def _teach(admission: Admission, work: QueuedJob, seconds: float) -> None:
    """Let an admission see a job of this duration, without waiting that long."""
    admission._estimates.record(work.kind, seconds)


def test_a_waiter_that_is_more_urgent_moves_a_waiting_job_forward() -> None:
    async def scenario() -> list[str]:
        jobs = _Jobs(Admission(1, CallLimits()))
        await jobs.add("running", _work())
        prewarmed = _work(urgency=Urgency(PREWARM))
        await jobs.add("prewarmed", prewarmed)
        await jobs.add("batch", _work(urgency=Urgency(BATCH)))
        prewarmed.urgency.add(Urgency(INTERACTIVE))
        await jobs.end("running", "prewarmed", "batch")
        return jobs.order

    assert _run(scenario()) == ["running", "prewarmed", "batch"]


def test_long_jobs_leave_a_worker_to_short_ones() -> None:
    async def scenario() -> list[str]:
        jobs = _Jobs(Admission(2, CallLimits()))
        long = _work("t", b"long")
        await _teach(jobs.admission, long, 2 * LONG_SECONDS)
        await jobs.add("long 1", long)
        await jobs.add("long 2", long)
        await _teach(jobs.admission, _work("t", b"short"), 0.01)
        await jobs.add("short", _work("t", b"short"))
        started = list(jobs.order)
        await jobs.end("short", "long 1", "long 2")
        return started

    assert _run(scenario()) == ["long 1", "short"]


def test_a_job_that_cannot_end_in_time_is_refused_at_once_and_told_when() -> None:
    async def scenario() -> None:
        admission = Admission(1, CallLimits())
        jobs = _Jobs(admission)
        await _teach(admission, _work(), 20.0)
        await jobs.add("running", _work())
        await jobs.add("waiting", _work())
        soon = Urgency(INTERACTIVE, time.monotonic() + 15.0)
        with pytest.raises(DeadlineTooShortError) as late:
            async with admission.slot(_work(urgency=soon)):
                pass
        # 40 s of other jobs and 20 s of its own, but 15 s left.
        assert late.value.retry_after == pytest.approx(45.0, abs=1.0)
        assert admission.waiting == 1
        later = Urgency(INTERACTIVE, time.monotonic() + 60.0)
        task = await jobs.add("patient", _work(urgency=later))
        await jobs.end("running", "waiting", "patient")
        task.result()

    _run(scenario())


def test_a_job_that_alone_takes_longer_than_its_call_is_refused_without_a_delay() -> None:
    async def scenario() -> None:
        admission = Admission(1, CallLimits())
        await _teach(admission, _work(), 20.0)
        with pytest.raises(DeadlineTooShortError, match="allow more") as late:
            async with admission.slot(_work(urgency=Urgency(1, time.monotonic() + 1.0))):
                pass
        assert late.value.retry_after is None

    _run(scenario())


def test_nothing_is_refused_by_an_estimate_that_nothing_supports() -> None:
    async def scenario() -> list[str]:
        jobs = _Jobs(Admission(1, CallLimits()))
        huge = QueuedJob("t", JobKind(b"new", b"new", 2**30), JointUrgency())
        await jobs.add("huge", huge)
        soon = JointUrgency(Urgency(1, time.monotonic() + 5.0))
        await jobs.add("another", QueuedJob("t", JobKind(b"x", b"x", 2**30), soon))
        await jobs.end("huge", "another")
        return jobs.order

    assert _run(scenario()) == ["huge", "another"]


def test_the_queue_is_bounded_in_seconds_and_prefers_the_urgent() -> None:
    async def scenario() -> None:
        admission = Admission(1, CallLimits(max_queue_seconds=30.0))
        jobs = _Jobs(admission)
        await _teach(admission, _work(), 20.0)
        await jobs.add("running", _work())
        prewarm = await jobs.add("prewarm", _work(urgency=Urgency(PREWARM)))
        await jobs.add("urgent", _work(urgency=Urgency(INTERACTIVE)))
        with pytest.raises(OverloadedError, match="setting max_queue_seconds") as full:
            await prewarm
        assert full.value.retry_after
        with pytest.raises(OverloadedError, match="setting max_queue_seconds"):
            async with admission.slot(_work(urgency=Urgency(BATCH))):
                pass
        assert admission.backlog_seconds == pytest.approx(40.0, abs=1.0)
        await jobs.end("running", "urgent")
        assert admission.backlog_seconds == 0.0

    _run(scenario())


def test_a_job_that_is_cancelled_in_the_moment_it_starts_frees_its_slot() -> None:
    async def scenario() -> None:
        jobs = _Jobs(Admission(1, CallLimits()))
        await jobs.add("running", _work())
        starting = await jobs.add("starting", _work())
        jobs._release["running"].set()
        for _ in range(20):
            if not jobs.admission.waiting:
                break
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait({starting})
        await jobs.add("next", _work())
        await jobs.end("running", "next")
        assert jobs.order[-1] == "next"

    _run(scenario())


def test_new_work_is_refused_under_pressure_and_running_work_goes_on() -> None:
    async def scenario() -> None:
        reasons: list[UnavailableError] = []
        admission = Admission(
            1, CallLimits(), pressure=lambda: reasons[0] if reasons else None
        )  # fmt: skip
        jobs = _Jobs(admission)
        running = await jobs.add("running", _work())
        waiting = await jobs.add("waiting", _work())
        reasons.append(UnavailableError("the memory is nearly used up", retry_after=2.0))
        with pytest.raises(UnavailableError, match="memory"):
            async with admission.slot(_work()):
                pass
        await jobs.end("running", "waiting")
        running.result()
        waiting.result()

    _run(scenario())


def test_estimates_learn_from_the_same_job_and_from_its_family() -> None:
    estimates = CostEstimates(PASS_JOBS)
    family = [JobKind(bytes([n]), b"pipeline", 10_000) for n in range(9)]
    assert estimates.of(family[0]).at_least == 0.0
    for kind in family[:8]:
        estimates.record(kind, 3.0)
    new = estimates.of(family[8])
    assert new.seconds == pytest.approx(3.0)
    assert 0.0 < new.at_least < new.seconds
    twice = estimates.of(JobKind(b"new", b"pipeline", 20_000))
    assert new.seconds < twice.seconds < 2.1 * new.seconds
    for _ in range(30):
        estimates.record(family[0], 0.5)
    assert estimates.of(family[0]).seconds == pytest.approx(0.5, rel=0.01)
    assert estimates.of(family[1]).seconds == pytest.approx(3.0)


def test_no_job_is_estimated_to_take_longer_than_its_time_limit() -> None:
    estimates = CostEstimates(PASS_JOBS, longest=120.0)
    for n in range(8):
        estimates.record(JobKind(bytes([n]), b"pipeline", 1_000), 60.0)
    large = estimates.of(JobKind(b"large", b"pipeline", 10_000_000))
    assert (large.seconds, large.at_least) == (120.0, 120.0)
    assert estimates.of(JobKind(b"unknown", b"other", 2**40)).seconds == 120.0


def _kind(tenant: str, graph: bytes, *, body: bytes = b"", claimed: int = 0) -> JobKind:
    """The kind of a compile of one pipeline."""
    digest = graph_pb2.Digest(sha256=graph * 32, size_bytes=claimed)
    incoming = IncomingCompile(
        pb.CompileRequest(graph_digest=digest),
        memoryview(body),
        0,
        RequestMemory(CallLimits()).hold(tenant, 0),
    )
    tag = tenant.encode() * 32
    return kind_of_job(incoming, ModuleKey(tag, digest.sha256, b"p" * 32, b"v" * 32, b"e" * 32))


def test_slow_work_of_one_tenant_refuses_none_of_another() -> None:
    estimates = CostEstimates(PASS_JOBS)
    for n in range(3):
        estimates.record(_kind("a", bytes([n]), body=b"small"), 60.0)
    assert estimates.of(_kind("a", b"x", body=bytes(20_000))).at_least > 60.0
    assert estimates.of(_kind("b", b"x", body=bytes(20_000))).at_least == 0.0


def test_nobody_is_refused_by_a_size_that_another_claims() -> None:
    async def check() -> None:
        jobs = _Jobs(Admission(1, CallLimits()))
        for n in range(3):
            jobs.admission._estimates.record(_kind("a", bytes([n]), body=b"small"), 0.01)
        await jobs.add("running", _work("a", b"running"))
        claims = QueuedJob("a", _kind("a", b"x", claimed=2**24), JointUrgency())
        await jobs.add("waiting", claims)
        soon = Urgency(INTERACTIVE, time.monotonic() + 5)
        await jobs.add("honest", _work("b", b"honest", soon))
        assert jobs.admission.waiting == 2
        await jobs.end("running", "honest", "waiting")

    _run(check())


def test_a_call_without_a_deadline_has_an_infinite_one() -> None:
    assert Urgency.of(0, lambda: None) == Urgency(INTERACTIVE, math.inf)


def test_slots_that_come_and_go() -> None:
    async def scenario() -> list[str]:
        jobs = _Jobs(Admission(2, CallLimits()))
        await jobs.add("first", _work())
        await jobs.add("second", _work())
        jobs.admission.resize(1)
        await jobs.add("third", _work())
        await jobs.end("first")
        assert jobs.order == ["first", "second"], "there is one slot, and a job that holds it"
        jobs.admission.resize(2)
        await asyncio.sleep(0)
        await jobs.end("second", "third")
        return jobs.order

    assert _run(scenario()) == ["first", "second", "third"]

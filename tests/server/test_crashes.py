"""A worker that dies costs a caller nothing; a graph on which workers keep dying is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from in_process import Recorder

from lazyfx_server.compiling.dispatch.crashes import CrashTracker, Subject
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.errors import CrashingGraphError, RequestError, TimedOutError, UnavailableError
from lazyfx_server.execution import NoWorker, OnCall, WorkerCrashed, WorkerOutOfCpu, WorkerTimedOut
from lazyfx_server.telemetry import GraphRefused, JobRetried
from lazyfx_server.v1 import worker_pb2 as worker

_GRAPH = bytes(range(32))
_ALICE, _BOB = Subject(b"alice", _GRAPH), Subject(b"bob", _GRAPH)
_JOB = worker.NativeJob()
_DIES = WorkerCrashed("was killed by SIGSEGV")


class Scripted:
    """An executor that ends jobs as scripted; None is success."""

    workers = 1

    def __init__(self, *endings: Exception | None) -> None:
        self.endings = list(endings)

    async def start(self) -> None: ...

    async def run(
        self,
        job: bytes,
        *,
        timeout: float,
        owner: str | None = None,
        on_call: OnCall | None = None,
    ) -> bytes:
        del job, timeout, owner, on_call
        ending = self.endings.pop(0)
        if ending is not None:
            raise ending
        return worker.JobResult(native=worker.NativeResult()).SerializeToString()

    async def close(self) -> None: ...


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(
    executor: Scripted,
    subject: Subject = _ALICE,
    crashes: CrashTracker | None = None,
    recorder: Recorder | None = None,
) -> worker.NativeResult:
    jobs = Jobs(
        executor, 1.0, CrashTracker(600.0) if crashes is None else crashes, observer=recorder
    )
    return asyncio.run(jobs.native(_JOB, subject))


def test_a_job_whose_worker_died_is_tried_again() -> None:
    recorder = Recorder()
    executor = Scripted(_DIES, None)
    run(executor, recorder=recorder)
    assert not executor.endings
    assert recorder.count(JobRetried, job="native") == 1
    assert not recorder.count(GraphRefused)


@pytest.mark.parametrize("seconds", [600.0, 0.0])
def test_two_deaths_are_reported_with_the_graph(seconds: float) -> None:
    executor = Scripted(_DIES, _DIES, None)
    with pytest.raises(CrashingGraphError, match=_GRAPH.hex()):
        run(executor, crashes=CrashTracker(seconds))
    assert len(executor.endings) == 1


def test_a_graph_on_which_workers_died_is_refused_for_a_while() -> None:
    clock = Clock()
    crashes, recorder = CrashTracker(600.0, clock), Recorder()
    with pytest.raises(CrashingGraphError):
        run(Scripted(_DIES, _DIES), crashes=crashes, recorder=recorder)
    untouched = Scripted(None)
    clock.now = 590.0
    with pytest.raises(CrashingGraphError, match="refused for 10 s"):
        run(untouched, crashes=crashes, recorder=recorder)
    assert len(untouched.endings) == 1
    assert recorder.count(GraphRefused, job="native") == 2
    run(Scripted(None), _BOB, crashes)
    clock.now = 601.0
    run(untouched, crashes=crashes)


def test_deaths_of_several_requests_add_up_and_success_clears_them() -> None:
    cpu = WorkerOutOfCpu(600.0)
    crashes = CrashTracker(600.0)
    for _ in range(2):
        with pytest.raises(TimedOutError, match="CPU seconds"):
            run(Scripted(cpu), crashes=crashes)
    with pytest.raises(CrashingGraphError):
        run(Scripted(None), crashes=crashes)
    crashes = CrashTracker(600.0)
    for _ in range(3):
        run(Scripted(_DIES, None), crashes=crashes)


@pytest.mark.parametrize(
    ("ending", "expected"),
    [(NoWorker("none"), UnavailableError), (WorkerTimedOut(1.0), TimedOutError)],
)
def test_failures_that_the_graph_did_not_cause_do_not_count(
    ending: Exception, expected: type[RequestError]
) -> None:
    crashes = CrashTracker(600.0)
    endings: Sequence[Exception] = [ending] * 3
    for each in endings:
        with pytest.raises(expected):
            run(Scripted(each), crashes=crashes)
    run(Scripted(None), crashes=crashes)


def test_what_is_remembered_is_bounded() -> None:
    crashes = CrashTracker(600.0)
    for number in range(10_000):
        crashes.record_death("compile", Subject(b"t", number.to_bytes(32, "big")), "died")
    assert len(crashes) < 5_000

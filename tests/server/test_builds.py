"""C++ compiles for native jobs: transient failures are not permanent."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import wait_until
from inline_executor import InlineExecutor

from lazyfx_server.compiling.dispatch.builds import Builds
from lazyfx_server.compiling.dispatch.native_executor import NativeExecutor
from lazyfx_server.compiling.dispatch.precompiled_headers import PrecompiledHeaders
from lazyfx_server.execution import CallRefused, ProcessExecutor, WorkerFailed, start_forkserver
from lazyfx_server.jobs.native.confinement import Confinement
from lazyfx_server.jobs.native.toolchain.build_job import run_compile_job
from lazyfx_server.jobs.native.toolchain.compiler import Compiler
from lazyfx_server.jobs.native.work_area import WorkArea
from lazyfx_server.telemetry import Observers
from lazyfx_server.v1 import worker_pb2 as worker

COMPILER = Compiler("g++", "/usr/bin/g++", {}, (), b"", (), (), ())
REQUEST = worker.BuildRequest(
    kind=worker.BUILD_KIND_OBJECT, source=b"int x;", header="torch/csrc/inductor/cpp_prefix.h"
)


def header_of(job: bytes) -> bytes:
    """In place of a compile worker: answers with the header that it was given."""
    return worker.BuildResult(
        output=worker.BuildJob.FromString(job).header.encode()
    ).SerializeToString()


def test_a_header_is_precompiled_once_there_is_room_for_it(tmp_path: Path) -> None:
    async def scenario() -> list[bytes]:
        executor = InlineExecutor(header_of)
        await executor.start()
        area = WorkArea(tmp_path / "area")
        builds = Builds(executor, COMPILER, 60.0, area, Observers())
        (area.root / "headers").touch()  # no folder can be made there, as on a full disk
        try:
            first = (await builds.build(REQUEST, [], builds.session())).result
            (area.root / "headers").unlink()
            second = (await builds.build(REQUEST, [], builds.session())).result
        finally:
            await executor.close()
            area.close()
        return [first.output, second.output]

    first, second = asyncio.run(scenario())
    assert first == b""
    assert second.endswith(b"header.h")


def test_the_usual_header_is_made_before_anybody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazyfx_server.compiling.dispatch.builds._SECONDS_TO_PREPARATION", 0.0)
    made: list[int] = []

    def noting(job: bytes) -> bytes:
        made.append(worker.BuildJob.FromString(job).request.kind)
        return header_of(job)

    async def scenario() -> None:
        executor, area = InlineExecutor(noting), WorkArea(tmp_path / "area")
        builds = Builds(executor, COMPILER, 60.0, area, Observers())
        natives = NativeExecutor(executor, executor, builds, area, None)
        await natives.start()
        natives.prepare(REQUEST)
        await asyncio.wait_for(asyncio.to_thread(wait_until, lambda: made, "it is made"), 20)
        answer = (await builds.build(REQUEST, [], builds.session())).result
        assert answer.output.endswith(b"header.h")
        assert made == [worker.BUILD_KIND_HEADER, worker.BUILD_KIND_OBJECT]
        natives.prepare(worker.BuildRequest(kind=worker.BUILD_KIND_OBJECT, flags=["-evil"]))
        await builds.prepare(worker.BuildRequest(kind=worker.BUILD_KIND_OBJECT))  # without one
        await natives.close()
        assert len(made) == 2

    asyncio.run(scenario())


KILLED = {
    "the compiler": "kill -9 $$",
    "what it starts": "echo 'g++: fatal error: Killed signal terminated program cc1plus'; exit 1",
    "the worker": "kill -9 $PPID; exec sleep 1",
}


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("killed", KILLED)
def test_a_compile_that_is_killed_is_tried_once_more(tmp_path: Path, killed: str) -> None:
    compiler, marks = tmp_path / "compiler", tmp_path / "mark"
    compiler.write_text(
        f"#!/bin/sh\necho >> {marks}\n"
        f"if [ $(wc -l < {marks}) -le $(cat {tmp_path}/kills) ]; then {KILLED[killed]}; fi\n"
        'exec g++ "$@"\n'
    )
    compiler.chmod(0o755)
    job = partial(run_compile_job, replace(COMPILER, path=str(compiler)), Confinement(None))
    request = worker.BuildRequest(kind=worker.BUILD_KIND_OBJECT, source=b"int x;")

    async def scenario() -> list[worker.BuildResult]:
        executor = ProcessExecutor(job, processes=start_forkserver(), workers=1, max_jobs=1)
        await executor.start()
        area = WorkArea(tmp_path / "area")
        builds = Builds(executor, COMPILER, 60.0, area, Observers())
        try:
            (tmp_path / "kills").write_text("1")
            made = (await builds.build(request, [], builds.session())).result
            (tmp_path / "kills").write_text("9")
            with pytest.raises(CallRefused, match="did not finish"):
                await builds.build(request, [], builds.session())
            assert [*(area.root / "builds").iterdir()] == []
        finally:
            await executor.close()
            area.close()
        return [made]

    (made,) = asyncio.run(scenario())
    assert made.output.startswith(b"\x7fELF")
    assert len(marks.read_text()) == 4


QUOTED = {
    "a comment": b"int x = /* g++: fatal error: Killed signal terminated program cc1plus */ y;",
    "a message": (
        b'static_assert(false, "\\ng++: fatal error: Killed signal terminated program cc1plus\\n");'
    ),
}


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("quoted", QUOTED)
def test_an_error_that_quotes_its_source_is_no_kill(tmp_path: Path, quoted: str) -> None:
    """A job cannot have its error tried again, nor have the server log it."""
    request = worker.BuildRequest(kind=worker.BUILD_KIND_OBJECT, source=QUOTED[quoted])
    job = worker.BuildJob(request=request, folder=str(tmp_path)).SerializeToString()
    compiler = replace(COMPILER, path=shutil.which("g++"))
    answer = worker.BuildResult.FromString(run_compile_job(compiler, Confinement(None), job))
    assert "signal terminated program" in answer.failed


def test_only_what_was_killed_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(InlineExecutor):
        """Compile workers that all fail the same way."""

        runs = 0

        def __init__(self, error: str) -> None:
            super().__init__(bytes)
            self.error = error

        async def run(self, *_: Any, **__: Any) -> bytes:
            self.runs += 1
            raise WorkerFailed(self.error, "of a tenant")

    async def scenario(error: str) -> int:
        executor, area = Failing(error), WorkArea(tmp_path / "area")
        builds = Builds(executor, COMPILER, 60.0, area, Observers())
        request = worker.BuildRequest(kind=worker.BUILD_KIND_OBJECT, source=b"int x;")
        with pytest.raises(CallRefused):
            await builds.build(request, [], builds.session())
        area.close()
        return executor.runs

    assert asyncio.run(scenario("CompilerKilledError")) == 2
    assert asyncio.run(scenario("SandboxError")) == 1
    assert "tried again" in caplog.text
    assert "of a tenant" not in caplog.text


def test_flags_that_come_and_go_do_not_turn_precompiled_headers_off(tmp_path: Path) -> None:
    made: list[str] = []

    async def run(job: worker.BuildJob, folder: Path) -> worker.BuildResult:
        made.append(job.request.flags[0])
        (folder / "header.h.gch").write_bytes(b"")
        return worker.BuildResult(failed="no such flag" if "bad" in job.request.flags[0] else "")

    class Job:
        """A job."""

    async def scenario() -> None:
        area = WorkArea(tmp_path / "area")
        headers = PrecompiledHeaders(run, b"", area, None)
        kept: list[Path] = []

        async def used(flag: str, job: Job) -> bool:
            request = worker.BuildRequest(header="prefix.h", flags=[flag])
            async with headers.use(request, job) as path:
                kept.append(Path(path).parent)
                return path != ""

        for job in (Job(), Job(), Job()):
            assert await used("default", job)
        default = kept[-1]
        strangers = [Job() for _ in range(40)]
        for number, job in enumerate(strangers):
            assert await used(f"other{number}", job)
            assert not await used(f"bad{number}", job)
            assert not await used(f"more{number}", job)  # two for a job
        assert made.count("default") == 1
        assert await used("default", Job())
        assert (made.count("default"), kept[-1]) == (1, default)
        await asyncio.sleep(0.2)
        assert len(os.listdir(area.root / "headers")) <= 8  # noqa: PTH208 - in a coroutine
        made.clear()
        assert not await used("bad0", Job())
        assert not made  # not tried again at once
        request = worker.BuildRequest(header="prefix.h", flags=["held"])
        async with headers.use(request, Job()) as path:
            for number in range(20):
                await used(f"again{number}", Job())
            await asyncio.sleep(0.1)
            assert os.path.isdir(os.path.dirname(path))  # noqa: ASYNC240, PTH112, PTH120
        area.close()

    asyncio.run(scenario())


class Held(InlineExecutor):
    """In place of native workers: jobs that end when they are let."""

    def __init__(self) -> None:
        super().__init__(bytes)
        self.folders: list[Path] = []
        self.scopes: list[bytes | None] = []
        self.may_end = [asyncio.Event(), asyncio.Event()]

    async def run(self, job: Any, **options: Any) -> bytes:
        folder = Path(worker.Job.FromString(job).native.cache)
        self.folders.append(folder)
        self.scopes.append(options["on_call"].scope)
        await self.may_end[len(self.folders) - 1].wait()
        assert os.path.isdir(folder)  # noqa: ASYNC240, PTH112 - nobody else waits
        return worker.JobResult().SerializeToString()


def test_two_runs_of_one_artifact_end_each_for_itself(tmp_path: Path) -> None:
    """As when an engine sends a job again whose first worker has not noticed."""

    async def scenario() -> None:
        jobs, compiles = Held(), InlineExecutor(header_of)
        area = WorkArea(tmp_path / "area")
        builds = Builds(compiles, COMPILER, 60.0, area, Observers())
        natives = NativeExecutor(jobs, compiles, builds, area, None)
        await natives.start()
        shared, alone = (
            worker.Job(native=worker.NativeJob(place=b"p", kernel_scope=scope)).SerializeToString()
            for scope in (b"", None)
        )
        runs = [asyncio.ensure_future(natives.run(job, timeout=60)) for job in (shared, alone)]
        for _ in range(20):
            await asyncio.sleep(0)
        for run, may_end in zip(runs, jobs.may_end, strict=True):
            may_end.set()
            await run
        assert len(set(jobs.folders)) == 2
        assert not any(folder.exists() for folder in jobs.folders)
        assert jobs.scopes == [b"", None]  # what is not said is not shared
        await natives.close()

    asyncio.run(scenario())

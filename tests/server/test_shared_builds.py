"""Builds over the kernels of a store: what is shared, and what a job can put there."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from inline_executor import InlineExecutor
from server.test_kernels import Seen, flights_over

from lazyfx_server.compiling.dispatch.builds import Builds
from lazyfx_server.execution import CallRefused
from lazyfx_server.jobs.native.toolchain.compiler import Compiler
from lazyfx_server.jobs.native.toolchain.toolchain_digest import Toolchain
from lazyfx_server.jobs.native.work_area import WorkArea
from lazyfx_server.security.stat_fingerprint import stat_fingerprint
from lazyfx_server.store import MemoryStore
from lazyfx_server.telemetry import Observers
from lazyfx_server.v1 import worker_pb2 as worker

FAKE = Compiler("g++", "/usr/bin/g++", {}, (), b"", (), (), ())


def echoed(job: bytes) -> bytes:
    """In place of a compile worker: answers with the source, and false claims."""
    request = worker.BuildJob.FromString(job).request
    return worker.BuildResult(output=b"of " + request.source, key=b"false").SerializeToString()


@pytest.fixture
def toolchain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of the toolchain of FAKE, which is what a key covers."""
    file = tmp_path / "cc1plus"
    file.touch()
    looks = {str(file): stat_fingerprint(file)}
    monkeypatch.setattr(
        "lazyfx_server.compiling.dispatch.builds.read_toolchain", lambda _: Toolchain(b"t", looks)
    )
    return file


class CountedStore(MemoryStore):
    """Counts what is put into it."""

    puts = 0

    async def put(self, key: str, value: bytes) -> None:
        self.puts += 1
        await super().put(key, value)


class FakeBuilds:
    """Builds over a store, with `echoed` as the compiler."""

    def __init__(self, folder: Path) -> None:
        self.executor, self.area = InlineExecutor(echoed), WorkArea(folder / "area")
        self.store = CountedStore(1 << 24)
        flights = flights_over(self.store, Seen())
        self.builds = Builds(self.executor, FAKE, 60.0, self.area, Observers(), None, flights)

    async def __aenter__(self) -> Builds:
        await self.executor.start()
        return self.builds

    async def __aexit__(self, *_: object) -> None:
        await self.executor.close()
        self.area.close()

    @property
    def stored(self) -> int:
        return self.store.puts


def question(source: bytes, kind: worker.BuildKind.ValueType = worker.BUILD_KIND_LIBRARY) -> bytes:
    return worker.BuildRequest(kind=kind, source=source).SerializeToString()


def test_what_is_compiled_after_an_upgrade_is_not_shared(tmp_path: Path, toolchain: Path) -> None:
    async def scenario() -> None:
        fake = FakeBuilds(tmp_path)
        async with fake as builds:
            await builds.start()
            await builds.session(b"")(question(b"int a;"))
            assert (fake.stored, builds.shares) == (1, True)
            toolchain.write_text("another compiler")  # noqa: ASYNC240 - nobody else waits
            await builds.session(b"")(question(b"int b;"))
            assert (fake.stored, builds.shares) == (1, False)

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [OSError("no answer"), ValueError("No closing quotation")])
def test_nothing_is_shared_if_the_compiler_cannot_be_identified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def unreadable(_: Compiler) -> Toolchain:
        raise error

    monkeypatch.setattr("lazyfx_server.compiling.dispatch.builds.read_toolchain", unreadable)

    async def scenario() -> None:
        fake = FakeBuilds(tmp_path)
        async with fake as builds:
            result = worker.BuildResult.FromString(await builds.session(b"")(question(b"int a;")))
            assert result.output == b"of int a;"
            assert (fake.stored, builds.shares) == (0, False)

    asyncio.run(scenario())


@pytest.mark.usefixtures("toolchain")
def test_a_job_cannot_fill_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyfx_server.compiling.dispatch.build_sessions._MAX_SHARED_BYTES", 100)

    async def scenario() -> None:
        fake = FakeBuilds(tmp_path)
        async with fake as builds:
            session = builds.session(b"")
            await session(question(b".space 16000000", worker.BUILD_KIND_DATA))
            assert fake.stored == 0  # data is never shared
            for number in range(20):
                made = await session(question(b"int x%03d;" % number))
                assert worker.BuildResult.FromString(made).output == b"of int x%03d;" % number
            assert fake.stored == 100 // len(b"of int x000;")
            await builds.session(b"")(question(b"int y;"))
            assert fake.stored == 1 + 100 // len(b"of int x000;")

    asyncio.run(scenario())


@pytest.mark.usefixtures("toolchain")
def test_what_a_taken_over_worker_claims_is_not_stored(tmp_path: Path) -> None:
    """It can only have its own source compiled, and that is found under its own source."""

    async def scenario() -> None:
        good, evil = question(b"int good;"), question(b"int evil;")
        # Both messages merged, answers in place of questions, and unknown fields with a key.
        claimed = worker.BuildResult(output=b"evil", key=b"k" * 32).SerializeToString()
        async with FakeBuilds(tmp_path) as builds:
            taken_over, honest = builds.session(b""), builds.session(b"")
            for asked in (evil, good + evil, evil + claimed, good + b"\xfa\x01\x04evil"):
                with contextlib.suppress(CallRefused):
                    await taken_over(asked)
            result = worker.BuildResult.FromString(await honest(good))
            assert result.output == b"of int good;"
            assert result.key not in (b"false", b"k" * 32)
            assert not honest.has_made(b"of int evil;")

    asyncio.run(scenario())

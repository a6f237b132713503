"""Nodes of a cluster share the kernels of their server's store."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from inline_executor import InlineExecutor
from server.test_kernels import KEY, OTHER_KEY, Compiles, Seen, flights_over

from lazyfx_server.compiling.kernels.kernel_answers import AnsweringExecutor, KernelAnswers
from lazyfx_server.compiling.kernels.kernel_flights import Compile, KernelFlights, Provided
from lazyfx_server.compiling.kernels.server_kernels import ServerKernels, server_kernels
from lazyfx_server.execution import CallRefused, OnCall
from lazyfx_server.store import MemoryStore
from lazyfx_server.v1 import worker_pb2 as worker


def kernels() -> KernelFlights:
    return flights_over(MemoryStore(1 << 20), Seen())


class Node:
    """A node, with kernels in its memory."""

    def __init__(self) -> None:
        self.compiles = Compiles()
        self.compiles.may_end.set()
        self._own = kernels()

    async def provide(self, call: OnCall, key: bytes = KEY, scope: bytes = b"") -> Provided:
        """What one job gets, which reaches its server by `call`."""
        turn, may_keep = self.compiles.turn, self.compiles.may_keep
        async with server_kernels(call) as elsewhere:
            return await self._own.provide(key, scope, turn, may_keep, elsewhere)


def test_what_one_node_has_compiled_no_other_node_compiles() -> None:
    async def scenario() -> None:
        server, first, second = kernels(), Node(), Node()
        made = await first.provide(KernelAnswers(server, b""))
        assert made.source == "compiled"
        found = await second.provide(KernelAnswers(server, b""))
        assert (found.source, found.result, found.seconds) == ("found", made.result, made.seconds)
        # From now on also without its server.
        assert (await second.provide(refuse)).source == "found"
        assert second.compiles.runs == 0
        own = await server.provide(KEY, b"", first.compiles.turn, first.compiles.may_keep)
        assert (own.source, first.compiles.runs) == ("found", 1)
        assert (await second.provide(KernelAnswers(server, b"one"), scope=b"one")).source == (
            "compiled"
        ), "a tenant that shares none"

    asyncio.run(scenario())


async def refuse(_: bytes) -> bytes:
    raise CallRefused("this job may not call the server")


async def garbage(_: bytes) -> bytes:
    return b"\xff"


async def silence(_: bytes) -> bytes:
    await asyncio.Event().wait()
    return b""


@pytest.mark.parametrize("call", [refuse, garbage, silence])
def test_a_server_that_does_not_answer_is_a_miss(
    call: OnCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazyfx_server.compiling.kernels.server_kernels._SECONDS", 0.05)
    calls = 0

    async def counted(question: bytes) -> bytes:
        nonlocal calls
        calls += 1
        return await call(question)

    async def scenario() -> None:
        assert (await Node().provide(counted)).source == "compiled"
        assert calls == 1, "it is not asked again for this job"

    asyncio.run(scenario())


def test_a_compiler_is_free_while_a_kernel_is_given() -> None:
    given, may_end = asyncio.Event(), asyncio.Event()
    free: list[bool] = []

    async def slow(question: bytes) -> bytes:
        if worker.KernelCall.FromString(question).HasField("made"):
            given.set()
            await may_end.wait()
        return b""

    class Turns(Compiles):
        @asynccontextmanager
        async def turn(self) -> AsyncIterator[Compile]:
            async with super().turn() as compile_it:
                yield compile_it
            free.append(True)

    async def scenario() -> None:
        compiles = Turns()
        compiles.may_end.set()
        async with server_kernels(slow) as elsewhere:
            made = await kernels().provide(KEY, b"", compiles.turn, compiles.may_keep, elsewhere)
            assert (made.source, free) == ("compiled", [True])
            await given.wait()
            may_end.set()

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_what_a_job_gives_arrives_before_it_ends_unless_it_is_stopped() -> None:
    arrived: list[bytes] = []

    async def call(question: bytes) -> bytes:
        await asyncio.sleep(0.01)
        arrived.append(worker.KernelCall.FromString(question).key)
        return b""

    async def scenario() -> None:
        record = worker.KernelRecord(output=b"made")
        async with server_kernels(call) as elsewhere:
            assert elsewhere is not None
            elsewhere.give(KEY, record)
        assert arrived == [KEY]
        with contextlib.suppress(LookupError):
            async with server_kernels(call) as elsewhere:
                assert elsewhere is not None
                elsewhere.give(OTHER_KEY, record)
                raise LookupError("the job failed")
        elsewhere.give(OTHER_KEY, record)
        await asyncio.sleep(0.05)
        assert arrived == [KEY]

    asyncio.run(scenario())


def test_a_server_that_wants_no_more_kernels_is_still_asked() -> None:
    async def full(question: bytes) -> bytes:
        call = worker.KernelCall.FromString(question)
        if call.HasField("made"):
            raise CallRefused("the job has given too many")
        return worker.KernelRecord(output=call.key).SerializeToString()

    async def scenario() -> None:
        elsewhere = ServerKernels(full)
        elsewhere.give(KEY, worker.KernelRecord(output=b"made"))
        await elsewhere.arrived()
        assert await elsewhere.find(OTHER_KEY) == worker.KernelRecord(output=OTHER_KEY)

    asyncio.run(scenario())


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf, 1e6])
def test_a_kernel_that_took_no_time_that_there_is_is_refused(seconds: float) -> None:
    record = worker.KernelRecord(output=b"made", seconds=seconds)

    async def scenario() -> None:
        server = kernels()
        with pytest.raises(CallRefused, match="seconds"):
            await KernelAnswers(server, b"")(
                worker.KernelCall(key=KEY, made=record).SerializeToString()
            )
        assert await server.find(KEY, b"") is None

    asyncio.run(scenario())


def test_a_node_gives_kernels_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    answering = "lazyfx_server.compiling.kernels.kernel_answers"
    monkeypatch.setattr(f"{answering}._MAX_GIVEN_BYTES", 100)
    monkeypatch.setattr(f"{answering}._MAX_CALLS", 8)

    def given(key: bytes, size: int) -> bytes:
        record = worker.KernelRecord(output=bytes(size))
        return worker.KernelCall(key=key, made=record).SerializeToString()

    async def scenario() -> None:
        server = kernels()
        answers = KernelAnswers(server, b"")
        for refused in (b"\xff", given(b"short", 1), given(KEY, 0), b""):
            with pytest.raises(CallRefused):
                await answers(refused)
        assert await answers(given(KEY, 60)) == b""
        with pytest.raises(CallRefused):
            await answers(given(OTHER_KEY, 60))
        assert await server.find(OTHER_KEY, b"") is None
        assert (await server.find(KEY, b"")) == worker.KernelRecord(output=bytes(60))
        for _ in range(2):
            assert await answers(worker.KernelCall(key=KEY).SerializeToString())
        with pytest.raises(CallRefused, match="at most 8"):
            await answers(worker.KernelCall(key=KEY).SerializeToString())

    asyncio.run(scenario())


@pytest.mark.parametrize("scope", [None, b"", b"tenant"])
def test_a_job_reaches_the_kernels_of_its_scope_only(scope: bytes | None) -> None:
    class Nodes(InlineExecutor):
        asked: Any = None

        async def run(self, _: Any, **options: Any) -> bytes:
            self.asked = options["on_call"]
            return b""

    async def scenario() -> None:
        server, nodes = kernels(), Nodes(bytes)
        await server.add(KEY, b"", worker.KernelRecord(output=b"made"))
        job = worker.Job(native=worker.NativeJob(kernel_scope=scope))
        executor = AnsweringExecutor(nodes, server)
        await executor.run(job.SerializeToString(), timeout=1.0)
        if scope is None:
            assert nodes.asked is None
        else:
            found = await nodes.asked(worker.KernelCall(key=KEY).SerializeToString())
            assert bool(found) == (scope == b"")

    asyncio.run(scenario())

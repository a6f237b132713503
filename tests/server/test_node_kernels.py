"""Nodes of a cluster share the kernels of their server's store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from inline_executor import InlineExecutor
from server.test_kernels import KEY, OTHER_KEY, Compiles, Seen, flights_over

from lazyfx_server.compiling.kernels.kernel_answers import AnsweringExecutor, KernelAnswers
from lazyfx_server.compiling.kernels.kernel_flights import KernelFlights, Provided
from lazyfx_server.compiling.kernels.server_kernels import ServerKernels
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
        return await self._own.provide(key, scope, turn, may_keep, ServerKernels(call))


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

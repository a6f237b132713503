"""What a server remembers of jobs: for their tenants, checked, and gone when it is damaged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from server.harness import connected, refused
from servers import RunningServer

from lazyfx.shared.native.prefetch_keys import MAX_ARTIFACTS, MAX_COMPILE_BYTES, MAX_JOB_BYTES
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub
from lazyfx_server.compiling.prefetching import prefetching
from lazyfx_server.compiling.prefetching.job_memory import JobMemory
from lazyfx_server.compiling.tenants import Tenants
from lazyfx_server.errors import InvalidRequestError
from lazyfx_server.store import MemoryStore

JOB, OTHER = b"a" * 32, b"b" * 32
ALICE, BOB = map(Tenants(b"secret").named, ("alice", "bob"))


def remembered(*digests: int) -> pb.RememberJobRequest:
    request = pb.RememberJobRequest(jobs=[JOB], natives=[pb.NativeRequest(configuration=b"c")])
    for number in digests:
        asked = pb.CompileRequest(graph_digest={"sha256": bytes([number]) * 32})
        request.artifacts.add(compile=asked, native=0)
    return request


def digests(record: pb.RememberJobRequest | None) -> list[int]:
    assert record is not None
    return [artifact.compile.graph_digest.sha256[0] for artifact in record.artifacts]


async def test_the_first_known_job_of_the_tenant_counts() -> None:
    memory = JobMemory(MemoryStore(2**20))
    await memory.remember(remembered(1, 2), ALICE)
    found = await memory.recall([OTHER, JOB], ALICE)
    assert digests(found) == [1, 2]
    assert found is not None
    assert not found.jobs
    assert not found.has_ended
    assert await memory.recall([OTHER], ALICE) is None
    assert await memory.recall([JOB], BOB) is None


async def test_a_job_that_fails_early_and_other_ranks_do_not_take_from_what_is_remembered() -> None:
    memory = JobMemory(MemoryStore(2**20))
    whole, early, other_native = remembered(1, 2, 3), remembered(4, 2), remembered(1)
    other_native.natives[0].configuration = b"d"
    for request in (whole, early, other_native):
        request.jobs[:] = [JOB, OTHER]
        await memory.remember(request, ALICE)
    for job in (JOB, OTHER):
        found = await memory.recall([job], ALICE)
        assert digests(found) == [1, 4, 2, 1, 3]
        assert found is not None
        natives = [found.natives[a.native].configuration for a in found.artifacts]
        assert natives == [b"d", b"c", b"c", b"c", b"c"]
    # At its end it has asked for all that it needs; other arguments and ranks need other things.
    early.has_ended = True
    await memory.remember(early, ALICE)
    assert digests(await memory.recall([JOB], ALICE)) == [4, 2]
    assert sorted(digests(await memory.recall([OTHER], ALICE))) == [1, 1, 2, 3, 4]


async def test_what_is_kept_is_bounded_and_the_newest_counts() -> None:
    memory = JobMemory(MemoryStore(2**22))
    for first in range(0, 256, 128):
        await memory.remember(remembered(*range(first, first + 128)), ALICE)
    newest = remembered(1)
    newest.natives[0].configuration = b"d"
    await memory.remember(newest, ALICE)
    kept = digests(await memory.recall([JOB], ALICE))
    assert len(kept) == MAX_ARTIFACTS
    assert kept[:3] == [1, 128, 129]


async def test_a_plan_does_not_wait_for_a_slow_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetching, "_PLAN_SECONDS", 0.01)
    loop = asyncio.get_running_loop()
    lookups: list[asyncio.Future[Any]] = [loop.create_future() for _ in range(3)]
    lookups[0].set_result("found")
    lookups[2].set_result(None)
    assert await prefetching._in_time(lookups) == ["found", None, None]
    assert lookups[1].cancelled()
    assert await prefetching._in_time([]) == []


async def test_a_damaged_or_foreign_record_is_forgotten() -> None:
    store = MemoryStore(2**20)
    memory = JobMemory(store)
    await memory.remember(remembered(1), ALICE)
    whole = await store.get(ALICE.job(JOB))
    assert whole is not None
    bob_says = ALICE.seal.close(BOB.job(JOB), whole[32:])
    damaged = [whole[:-1], whole[:40], b"", bytes(len(whole)), bob_says]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (0, 31, 32, 50)]
    for data in damaged:
        await store.put(ALICE.job(JOB), data)
        assert await memory.recall([JOB], ALICE) is None
    # Of a server with other bounds: sealed, but not what this one would accept.
    strange = remembered(1)
    strange.artifacts[0].native = 7
    place = ALICE.job(JOB)
    for record in (strange.SerializeToString(), b"\xff"):
        await store.put(place, ALICE.seal.close(place, record))
        assert await memory.recall([JOB], ALICE) is None


CHANGES: dict[str, Callable[[pb.RememberJobRequest], object]] = {
    "jobs": lambda r: r.ClearField("jobs"),
    "jobs[0]": lambda r: r.jobs.__setitem__(0, b"short"),
    "natives[0].states": lambda r: r.natives[0].states.add(name="no such state"),
    "artifacts[0].native": lambda r: setattr(r.artifacts[0], "native", 1),
    "artifacts[0].compile.graph_digest.sha256": lambda r: r.artifacts[0].ClearField("compile"),
    "artifacts[0].compile": lambda r: setattr(r.artifacts[0].compile, "skip_cache_lookup", True),
    "artifacts": lambda r: r.natives.extend(
        pb.NativeRequest(setting_digests=bytes(60_000)) for _ in range(MAX_JOB_BYTES // 60_000 + 1)
    ),
}


@pytest.mark.parametrize("field", CHANGES)
async def test_what_is_wrong_is_refused_with_its_field(field: str) -> None:
    memory, request = JobMemory(MemoryStore(2**20)), remembered(1)
    CHANGES[field](request)
    with pytest.raises(InvalidRequestError) as caught:
        await memory.remember(request, ALICE)
    (violation,) = caught.value.violations
    assert violation.field.startswith(field)


def test_over_grpc_bounds_come_first_and_an_unknown_job_has_a_plan_without_keys(
    server: RunningServer,
) -> None:
    with connected(server.address) as stub:
        _refuse_and_answer(stub)


def _refuse_and_answer(stub: GraphCompilerStub) -> None:
    long = remembered(1)
    long.artifacts[0].compile.passes.add(name="x" * 200)
    long.artifacts[0].compile.passes[0].options.add(name="y" * 100).value.text = "z" * 2**15
    for request, field in (
        (pb.RememberJobRequest(jobs=[JOB] * 5), "jobs"),
        (pb.RememberJobRequest(jobs=[JOB], artifacts=[pb.RememberedArtifact()] * 257), "artifacts"),
        (long, "artifacts[0].compile"),
    ):
        refusal = refused(lambda request=request: stub.RememberJob(request))
        assert refusal.code == "INVALID_ARGUMENT"
        assert any(name.startswith(field) for name in refusal.fields)
    refusal = refused(lambda: list(stub.Prefetch(pb.PrefetchRequest())))
    assert set(refusal.fields) == {"jobs"}
    assert MAX_COMPILE_BYTES < 2**15
    # This server builds no native artifacts, so that it has none to send.
    stub.RememberJob(remembered(1))
    (part,) = stub.Prefetch(pb.PrefetchRequest(jobs=[OTHER, JOB], max_bytes=1000))
    assert part.plan.server.lazyfx_version
    assert not part.plan.keys

"""The memory guard: what it reads from the kernel's files, when it refuses, and what it frees."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from harness import DCE, compile_request, graph_of
from in_process import Parts, compiling_parts
from inline_executor import InlineExecutor

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.limits.memory_guard import (
    MOST_RESERVE,
    MemoryFiles,
    MemoryGuard,
    MemoryUse,
)
from lazyfx_server.errors import UnavailableError
from lazyfx_server.jobs.graph_job import run_job
from lazyfx_server.store import MemoryStore, open_store

MIB = 2**20


class Kernel:
    """A folder with the files of procfs and of a cgroup hierarchy, in the kernel's formats."""

    def __init__(self, folder: Path, group: str) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        self._group = self.cgroups / group
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "pressure").mkdir()
        self._group.mkdir(parents=True)
        (self.proc / "self" / "cgroup").write_text(f"4:memory:/old\n0::/{group}\n")
        self.machine(total=64_000 * MIB, available=63_000 * MIB)

    def machine(self, *, total: int, available: int) -> None:
        (self.proc / "meminfo").write_text(
            f"MemTotal:       {total >> 10} kB\nMemFree:          1024 kB\n"
            f"MemAvailable:   {available >> 10} kB\nHugePages_Total:       0\n"
        )

    def group(self, *, used: int, limit: int | str, droppable: int = 0, stalled: str = "0") -> None:
        for name, text in (
            ("memory.current", f"{used}\n"),
            ("memory.max", f"{limit}\n"),
            ("memory.stat", f"anon {used}\nfile 7\ninactive_file {droppable}\nslab 1\n"),
            ("memory.pressure", f"some avg10=99.0 avg60=1 total=9\nfull avg10={stalled} avg60=0\n"),
        ):
            (self._group / name).write_text(text)

    def files(self) -> MemoryFiles:
        return MemoryFiles(self.proc, self.cgroups)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path, "pod/container")


def test_the_limit_is_that_of_the_tightest_group(kernel: Kernel) -> None:
    kernel.group(used=900 * MIB, limit=1000 * MIB, droppable=100 * MIB, stalled="3.50")
    outer = kernel.cgroups / "pod"
    for name, text in (("max", "max"), ("current", "1"), ("stat", "anon 1\n")):
        (outer / f"memory.{name}").write_text(text)
    assert kernel.files().read() == MemoryUse(800 * MIB, 1000 * MIB, 3.5)
    (outer / "memory.max").write_text("50")
    assert kernel.files().read() == MemoryUse(1, 50)


def test_without_a_limit_it_is_the_memory_of_the_machine(kernel: Kernel) -> None:
    kernel.group(used=900 * MIB, limit="max")
    assert kernel.files().read() == MemoryUse(1000 * MIB, 64_000 * MIB)
    (kernel.proc / "meminfo").write_text("MemTotal: many kB\n")
    assert kernel.files().read() is None


def test_this_machine_can_be_read() -> None:
    use = MemoryFiles().read()
    assert use is not None
    assert 0 < use.used < use.limit


def _check(guard: MemoryGuard) -> bool:
    asyncio.run(guard.check())
    return guard.is_refusing


def test_it_refuses_above_its_mark_until_there_is_clearly_more(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    freed: list[bool] = []
    guard = MemoryGuard(kernel.files().read, 0.9, lambda: freed.append(True))
    kernel.group(used=890 * MIB, limit=1000 * MIB)
    with caplog.at_level(logging.WARNING, "lazyfx_server"):
        assert not _check(guard)
        assert guard.refusal() is None
        kernel.group(used=910 * MIB, limit=1000 * MIB)
        assert _check(guard)
        refusal = guard.refusal()
        assert refusal is not None
        assert "91% used" in str(refusal)
        assert refusal.retry_after > 0
        kernel.group(used=890 * MIB, limit=1000 * MIB)
        assert _check(guard), "it would begin again at once"
        kernel.group(used=860 * MIB, limit=1000 * MIB)
        assert not _check(guard)
    assert len(freed) == 2
    began, ended = (record.getMessage() for record in caplog.records)
    assert "910 of 1000 MiB of memory are used" in began
    assert "1 requests were refused" in ended


def test_it_keeps_twice_as_much_while_tasks_wait_for_memory(kernel: Kernel) -> None:
    guard = MemoryGuard(kernel.files().read, 0.9, lambda: None)
    kernel.group(used=850 * MIB, limit=1000 * MIB, stalled="9.99")
    assert not _check(guard)
    kernel.group(used=850 * MIB, limit=1000 * MIB, stalled="10.00")
    assert _check(guard)


def test_a_large_machine_keeps_no_more_than_it_needs(kernel: Kernel) -> None:
    guard = MemoryGuard(kernel.files().read, 0.9, lambda: None)
    kernel.machine(total=10**12, available=MOST_RESERVE + MIB)
    assert not _check(guard)
    kernel.machine(total=10**12, available=MOST_RESERVE - MIB)
    assert _check(guard)
    assert not _check(MemoryGuard(kernel.files().read, 1.0, lambda: None))


def test_stores_in_memory_can_be_halved(tmp_path: Path) -> None:
    async def scenario() -> None:
        alone = MemoryStore(10 * MIB)
        tiered = open_store(tmp_path, memory_bytes=10 * MIB, disk_bytes=10 * MIB)
        for store in (alone, tiered):
            keys = [f"blob/{number:064x}" for number in range(8)]
            for key in keys:
                await store.put(key, bytes(MIB // 2))
            before = store.tiers()["memory"].bytes
            store.trim()
            assert 0 < store.tiers()["memory"].bytes <= before // 2
            # The disk still has what memory has dropped.
            assert await store.contains(keys) == (set(keys[4:]) if store is alone else set(keys))
            await store.close()

    asyncio.run(scenario())


async def _compile(parts: Parts, number: float) -> pb.CompileResponse:
    data = compile_request(graph_of(number), DCE).SerializeToString()
    async with parts.decoder.reading("Compile", data, parts.tenant) as incoming:
        answer = await parts.compiler.compile(incoming, parts.tenant, lambda: None)
    return pb.CompileResponse.FromString(answer)


def test_hits_are_answered_while_misses_are_refused(kernel: Kernel, tmp_path: Path) -> None:
    guard = MemoryGuard(kernel.files().read, 0.9, lambda: None)

    async def scenario() -> None:
        store, executor = tmp_path / "store", InlineExecutor(run_job)
        async with compiling_parts(store, executor, pressure=guard.refusal) as parts:
            kernel.group(used=500 * MIB, limit=1000 * MIB)
            await guard.check()
            made = await _compile(parts, 1.0)
            kernel.group(used=990 * MIB, limit=1000 * MIB)
            await guard.check()
            assert (await _compile(parts, 1.0)).cache.status == pb.CACHE_STATUS_HIT
            with pytest.raises(UnavailableError, match="setting memory_mark"):
                await _compile(parts, 2.0)
            # Rendering needs a worker, too.
            code = pb.GetArtifactRequest(module_key=made.module_key, kind=pb.ARTIFACT_KIND_CODE)
            with pytest.raises(UnavailableError):
                await parts.artifacts.get(code, parts.tenant, lambda: None)
            kernel.group(used=500 * MIB, limit=1000 * MIB)
            await guard.check()
            assert (await _compile(parts, 2.0)).cache.status == pb.CACHE_STATUS_MISS
            assert (await parts.artifacts.get(code, parts.tenant, lambda: None)).rendered

    asyncio.run(scenario())

"""Identical requests cost one compile and one rendering, whenever they arrive."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from harness import DCE, compile_request, graph_of
from in_process import Parts, compiling_parts
from inline_executor import InlineExecutor

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.jobs.graph_job import run_job
from lazyfx_server.telemetry import ArtifactServed, CompileFinished, LookupMade

_CALLERS = 64


async def _burst(parts: Parts, request: pb.CompileRequest, dice: random.Random) -> None:
    """Compile and fetch the code as many callers at once, none of them in step."""
    data = request.SerializeToString()

    async def call(delay: float, ticks: int) -> None:
        await asyncio.sleep(delay)
        for _ in range(ticks):
            await asyncio.sleep(0)
        async with parts.decoder.reading("Compile", data, parts.tenant) as incoming:
            answer = await parts.compiler.compile(incoming, parts.tenant, lambda: None)
        response = pb.CompileResponse.FromString(answer)
        artifact = pb.GetArtifactRequest(module_key=response.module_key, kind=pb.ARTIFACT_KIND_CODE)
        await parts.artifacts.get(artifact, parts.tenant, lambda: None)

    spread = dice.choice((0.0, 0.002, 0.005))
    await asyncio.gather(
        *(call(dice.uniform(0, spread), dice.randrange(6)) for _ in range(_CALLERS))
    )


async def _bursts(folder: Path, count: int) -> None:
    dice = random.Random(15)
    async with compiling_parts(folder, InlineExecutor(run_job)) as parts:
        for number in range(count):
            parts.recorder.events.clear()
            await _burst(parts, compile_request(graph_of(float(number)), DCE), dice)
            recorder = parts.recorder
            assert recorder.count(CompileFinished) == 1
            assert recorder.count(ArtifactServed, source="rendered") == 1
            misses = [
                e for e in recorder.events if isinstance(e, LookupMade) and e.result == "miss"
            ]
            assert [miss.miss_reason for miss in misses] == ["MISS_REASON_NEW_GRAPH"]
            assert recorder.count(LookupMade) == _CALLERS


def test_a_burst_of_identical_calls_costs_one_compile_and_one_rendering(tmp_path: Path) -> None:
    asyncio.run(_bursts(tmp_path, 40))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_bursts(tmp_path: Path) -> None:
    asyncio.run(_bursts(tmp_path, 1000))

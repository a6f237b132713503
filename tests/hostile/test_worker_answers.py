"""Compromised workers that return false results."""

from __future__ import annotations

import asyncio
import hashlib
import math

import pytest
import torch
from torch.fx import symbolic_trace

from lazyfx.shared import wire
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.dispatch.crashes import Subject
from lazyfx_server.compiling.dispatch.job_parts import CompileParts
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.errors import InternalError
from lazyfx_server.v1 import worker_pb2 as worker

_ENCODED = wire.encode(symbolic_trace(lambda x: torch.relu(x) + 1))
_BODY = graph_pb2.GraphBody.FromString(_ENCODED.body)


class Liar:
    """An executor that answers every job with the same bytes."""

    workers = 1

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def start(self) -> None: ...

    async def run(
        self, job: bytes, *, timeout: float, owner: str | None = None, on_call: object = None
    ) -> bytes:
        return self._answer

    async def close(self) -> None: ...


def honest() -> worker.CompileResult:
    return worker.CompileResult(
        graph=graph_pb2.CompiledGraph(
            graph=_ENCODED.message(), provenance=wire.provenance(_BODY, _ENCODED)
        )
    )


def compiled(result: worker.CompileResult) -> bytes:
    return worker.JobResult(compile=result).SerializeToString()


def _lies() -> dict[str, bytes]:
    other_graph, origins, constant, report, time = (honest() for _ in range(5))
    other_graph.graph.graph.body = _ENCODED.body + b"\xfa\x3f\x01x"
    origins.graph.ClearField("provenance")
    constant.constants.add(
        digest=graph_pb2.Digest(sha256=hashlib.sha256(b"a").digest(), size_bytes=1), data=b"evil"
    )
    report.report.pipeline = "x" * 5 * 2**20
    time.report.seconds = math.nan
    rendered = worker.RenderResult(data=b"def forward(): ...", media_type="text/x-python")
    return {
        "no message at all": b"\xff" * 1000,
        "nothing": b"",
        "the answer to another kind of job": worker.JobResult(render=rendered).SerializeToString(),
        "a graph that is not canonical": compiled(other_graph),
        "no graph": compiled(worker.CompileResult()),
        "no origins": compiled(origins),
        "a constant under a wrong digest": compiled(constant),
        "an endless report": compiled(report),
        "a time that is none": compiled(time),
    }


LIES = _lies()
_SUBJECT = Subject(b"alice", _ENCODED.digest)


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_an_internal_error_and_is_not_kept(lie: str) -> None:
    jobs = Jobs(Liar(LIES[lie]), 1.0)
    with pytest.raises(InternalError):
        asyncio.run(
            jobs.compile(CompileParts(worker.CompileJob(), _ENCODED.body), "alice", _SUBJECT)
        )


def test_honest_results_are_accepted() -> None:
    result = asyncio.run(
        Jobs(Liar(compiled(honest())), 1.0).compile(
            CompileParts(worker.CompileJob(), b""), "alice", _SUBJECT
        )
    )
    assert result.graph.graph.body == _ENCODED.body


@pytest.mark.parametrize(
    "rendered",
    [
        worker.RenderResult(data=b"\xff\xfe", media_type="text/x-python"),
        worker.RenderResult(data=b"x", media_type="text/html\r\nx-evil: 1"),
        worker.RenderResult(data=b"x", media_type=""),
        worker.RenderResult(data=b"x", media_type="text/x-python", seconds=-1.0),
    ],
)
def test_lies_about_renderings(rendered: worker.RenderResult) -> None:
    jobs = Jobs(Liar(worker.JobResult(render=rendered).SerializeToString()), 1.0)
    with pytest.raises(InternalError):
        asyncio.run(jobs.render(worker.RenderJob(kind=pb.ARTIFACT_KIND_CODE), "alice", _SUBJECT))

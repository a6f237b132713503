"""Limits: one name and one default each, from the flag to the worker's message and the refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile.test_bounds import OVER
from torch.fx import GraphModule, symbolic_trace

import lazyfx_server
from lazyfx.shared import wire
from lazyfx.shared.source.writable import MAX_SOURCE_BYTES
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.blobs.unfinished_uploads import UnfinishedUploads
from lazyfx_server.compiling.limits.admission import Admission, QueuedJob
from lazyfx_server.compiling.limits.cost_estimates import JobKind
from lazyfx_server.compiling.limits.held_bytes import RequestMemory
from lazyfx_server.compiling.limits.request_checks import described
from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import PassLimits, Pipeline, Registry
from lazyfx_server.rpc.message_bounds import request_bounds
from lazyfx_server.security.checked_graph import check
from lazyfx_server.security.scanning import scan
from lazyfx_server.settings.limits import (
    CallLimits,
    GraphLimits,
    RequestLimits,
    UploadLimits,
)
from lazyfx_server.settings.model import FIELDS, PARTS, Settings
from lazyfx_server.settings.part import Limits
from lazyfx_server.v1 import worker_pb2 as worker


def test_a_worker_gets_each_limit_under_its_name() -> None:
    fields = [field.name for field in worker.JobLimits.DESCRIPTOR.fields]
    assert fields == list(PassLimits.model_fields)
    numbers = {name: i + 2 for i, name in enumerate(fields)}
    limits = RequestLimits(**numbers)
    message = worker.JobLimits(**dict(PassLimits.of(limits)))
    received = PassLimits.of(worker.JobLimits.FromString(message.SerializeToString()))
    assert dict(received) == numbers
    assert dict(PassLimits.of(worker.JobLimits())) == dict.fromkeys(fields, 0), "0 is not a default"


def test_each_setting_is_declared_once() -> None:
    assert sum(len(part.model_fields) for part in PARTS) == len(FIELDS)
    assert dict(Settings().limits) == {limit.name: limit.value for limit in _described()}


def _described() -> list[pb.Limit]:
    limits = dict(Settings().limits)
    return [limit for limit in described(limits.items()) if limit.name in limits]


def test_client_and_server_bound_sources_alike() -> None:
    assert GraphLimits().max_source_bytes == MAX_SOURCE_BYTES


def _over_when_scanned() -> dict[str, tuple[str, Any]]:
    """For bounds of messages: a method, and a request that is over a bound of 2."""
    graph = graph_pb2.Graph(body=b"123")
    names = graph_pb2.Presentation(device_indices=[1, 2, 3])
    text = pb.PassOption(name="a", value=pb.OptionValue(text="abc"))
    passes = {
        "max_passes": [pb.PassSpec()] * 3,
        "max_rewrites": [pb.PassSpec(rewrites=[pb.Rewrite()] * 3)],
        "max_option_bytes": [pb.PassSpec(options=[text])],
    }
    return {
        "max_graph_bytes": ("Compile", pb.CompileRequest(graph=graph)),
        "max_presentation_bytes": (
            "Compile", pb.CompileRequest(graph=graph_pb2.Graph(presentation=names)),
        ),
        "max_values": ("Compile", pb.CompileRequest(values=[pb.ValueBinding()] * 3)),
        "max_digests": (
            "FindMissingBlobs", pb.FindMissingBlobsRequest(digests=[graph_pb2.Digest()] * 3),
        ),
        "max_message_bytes": ("UploadBlobs", pb.UploadBlobsRequest(data=b"123")),
        **{name: ("Compile", pb.CompileRequest(passes=specs)) for name, specs in passes.items()},
    }  # fmt: skip


def _scan(name: str) -> None:
    method, request = _over_when_scanned()[name]
    kinds: tuple[type[Limits], ...] = (RequestLimits, CallLimits, UploadLimits)
    limits: Any = [kind(**({name: 2} if name in kind.model_fields else {})) for kind in kinds]
    scan(request.SerializeToString(), request_bounds(*limits)[method])


def _sines() -> GraphModule:
    return symbolic_trace(lambda x: torch.sin(torch.sin(torch.sin(x))))


def _replace(**limits: int) -> None:
    sine, cosine = (symbolic_trace(f) for f in (lambda a: torch.sin(a), lambda a: torch.cos(a)))
    pipeline = Pipeline((Registry().create("replace_pattern", {}),))
    pipeline.run(_sines(), RecompileLedger(), PassLimits(**limits), {0: ((sine, cosine),)})


def _stage(**limits: int) -> None:
    uploads = UnfinishedUploads(UploadLimits(**limits))
    uploads.add("alice", 1)
    uploads.add("alice", 2)


def _hold(**limits: int) -> None:
    memory = RequestMemory(CallLimits(**limits))
    memory.add("alice", 1)
    memory.add("alice", 2)


async def _wait(count: int, **limits: float) -> None:
    """So many jobs at once, of which one runs and the others wait."""
    admission = Admission(1, CallLimits(**limits))

    async def job(end: asyncio.Event) -> None:
        async with admission.slot(QueuedJob("alice", JobKind(b"", b"", 0))):
            await end.wait()

    end = asyncio.Event()
    jobs = [asyncio.ensure_future(job(end)) for _ in range(count)]
    await asyncio.sleep(0)
    end.set()
    await asyncio.gather(*jobs)


_REFUSALS: dict[str, Callable[[], object]] = {
    **{
        name: lambda name=name, over=over: check(over[1], limits=GraphLimits(**{name: over[0]}))
        for name, over in OVER.items()
    },
    **{name: lambda name=name: _scan(name) for name in _over_when_scanned()},
    "max_nodes": lambda: check(wire.encode(_sines()).body, limits=GraphLimits(max_nodes=2)),
    "max_matches": lambda: _replace(max_matches=2),
    "max_match_steps": lambda: _replace(max_match_steps=2),
    "max_staged_bytes": lambda: _stage(max_staged_bytes=2),
    "max_staged_bytes_in_all": lambda: _stage(max_staged_bytes_in_all=2),
    "max_held_bytes": lambda: _hold(max_held_bytes=2),
    "max_held_bytes_per_tenant": lambda: _hold(max_held_bytes_per_tenant=2),
    "max_queue": lambda: asyncio.run(_wait(2, max_queue=0)),
    "max_queue_seconds": lambda: asyncio.run(_wait(3, max_queue_seconds=1e-6)),
}
# Their refusals need a running job, a stream or a large blob.
_ELSEWHERE = {
    "max_folded_bytes", "max_pass_seconds", "max_blob_bytes", "max_call_seconds",
    "upload_idle_timeout", "stream_idle_timeout", "min_upload_rate", "worker_memory_bytes",
}  # fmt: skip
# Named as "raise job_timeout": what ends a native compile are other settings.
_RAISED = {"job_timeout", "job_cpu_seconds"}
# Nothing is refused: gRPC keeps to these, or calls and answers wait.
_SILENT = {"max_metadata_bytes", "max_streams", "max_batch_in_flight", "max_refused_rate"}


@pytest.mark.parametrize("name", sorted(_REFUSALS))
def test_a_refusal_names_its_setting(name: str) -> None:
    with pytest.raises(Exception, match=rf"\(setting {name}\)"):
        _REFUSALS[name]()


def test_no_limit_is_forgotten() -> None:
    assert set(_REFUSALS) | _ELSEWHERE | _RAISED | _SILENT == set(dict(Settings().limits))
    folder = Path(lazyfx_server.__file__).parent
    source = "".join(path.read_text("utf-8") for path in folder.rglob("*.py"))
    for name in _ELSEWHERE:
        assert f"(setting {name})" in source or f'bound("{name}")' in source, name

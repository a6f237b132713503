"""What a worker process runs: one job, bytes in, bytes out."""

from __future__ import annotations

import logging
from time import perf_counter

import torch

from lazyfx import wire
from lazyfx.errors import DecodeError, LazyfxError
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.lazy.render import render
from lazyfx_server.passes import PassError, PassLimits, PassRun, Registry
from lazyfx_server.passes.requests import pipeline_of
from lazyfx_server.security.checked import CheckedGraph, check
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)

_KINDS = {
    "invalid": worker.JOB_ERROR_KIND_INVALID,
    "limit": worker.JOB_ERROR_KIND_LIMIT,
    "precondition": worker.JOB_ERROR_KIND_PRECONDITION,
    "internal": worker.JOB_ERROR_KIND_INTERNAL,
}


def run_job(data: bytes) -> bytes:
    """Run one serialized Job and return a serialized JobResult.

    Whatever goes wrong becomes a JobError, so that only this job fails.
    """
    job = worker.Job.FromString(data)
    result = worker.JobResult()
    try:
        if job.HasField("compile"):
            result.compile.CopyFrom(_compile(job.compile))
        elif job.HasField("render"):
            result.render.CopyFrom(render(job.render))
        else:
            result.describe.CopyFrom(_describe())
    except PassError as error:
        result.error.CopyFrom(_pass_error(error, job.compile))
    except DecodeError as error:
        result.error.CopyFrom(_decode_error(error, job.compile))
    except _ValuesMissing as error:
        result.error.kind = worker.JOB_ERROR_KIND_PRECONDITION
        result.error.message = "passes read the values of these tensors; send them and try again"
        result.error.missing.extend(error.subjects)
    except LazyfxError as error:
        result.error.kind = worker.JOB_ERROR_KIND_INVALID
        result.error.message = str(error)
    except Exception as error:  # noqa: BLE001 - an answer must go back whatever happened
        _log.exception("a job failed")
        result.error.kind = worker.JOB_ERROR_KIND_INTERNAL
        result.error.message = f"{type(error).__name__} in the worker"
    return result.SerializeToString()


class _ValuesMissing(Exception):  # noqa: N818 - not a failure but a question
    """Passes read tensors whose values did not come with the job."""

    def __init__(self, subjects: list[str]) -> None:
        self.subjects = subjects
        super().__init__()


def _compile(job: worker.CompileJob) -> worker.CompileResult:
    started = perf_counter()
    pipeline = pipeline_of(Registry(), job.passes)
    checked = check(job.body, max_nodes=job.limits.max_nodes)
    rewrites = {
        place: tuple(
            (
                _decode_rewrite(f"passes[{place}].rewrites[{i}].pattern", rewrite.pattern, job),
                _decode_rewrite(
                    f"passes[{place}].rewrites[{i}].replacement", rewrite.replacement, job
                ),
            )
            for i, rewrite in enumerate(spec.rewrites)
        )
        for place, spec in enumerate(job.passes)
        if spec.rewrites
    }
    _require_values(pipeline.values_read, checked, job)
    ledger = RecompileLedger()
    module = _decode(checked, job.values)
    decoded = perf_counter()
    nodes_before = len(module.graph.nodes)
    limits = PassLimits(
        max_nodes=job.limits.max_nodes,
        max_folded_bytes=job.limits.max_folded_bytes,
        max_matches=job.limits.max_matches,
    )
    outcome = pipeline.run(module, ledger, limits, rewrites)
    passed = perf_counter()
    encoded = wire.encode(outcome.module)
    result = worker.CompileResult(
        graph=graph_pb2.CompiledGraph(
            graph=encoded.message(), provenance=wire.provenance(checked.body, encoded)
        ),
        constants=_constants(checked.body, encoded),
        performed=_performed(ledger),
    )
    finished = perf_counter()
    requested, performed = ledger.requested(), ledger.performed()
    result.report.CopyFrom(
        pb.CompileReport(
            recompiles=_recompiles(requested, performed),
            passes=[_pass_report(run) for run in outcome.runs],
            seconds=finished - started,
            pass_seconds=passed - decoded,
            nodes_before=nodes_before,
            nodes_after=encoded.nodes,
            saved_seconds=ledger.saved_seconds(),
            stale=True,
            pipeline=pipeline.spelling,
        )
    )
    result.codec_seconds = (decoded - started) + (finished - passed)
    return result


def _decode(checked: CheckedGraph, values: list[worker.TensorValue]) -> torch.fx.GraphModule:
    by_place = {(value.graph, value.attribute): value.data for value in values}

    def bind(graph: int, attribute: int, row: graph_pb2.Attribute) -> torch.Tensor | None:
        data = by_place.get((graph, attribute))
        if data is None:
            return None
        return wire.tensor_from_bytes(checked.body, row.tensor, data)

    return wire.decode(checked.body, bind=bind)


def _decode_rewrite(
    field: str, graph: graph_pb2.Graph, job: worker.CompileJob
) -> torch.fx.GraphModule:
    try:
        return wire.decode(check(graph.body, max_nodes=job.limits.max_nodes).body)
    except DecodeError as error:
        raise PassError(str(error), field=field) from error

"""The job function of a worker process: one job, bytes in, bytes out."""

from __future__ import annotations

import logging
import os
from time import perf_counter

import torch
from torch.fx import GraphModule

from lazyfx.errors import DecodeError, LazyfxError, UnsupportedGraphError, joined
from lazyfx.shared import wire
from lazyfx.shared.format_version import check_envelope
from lazyfx.shared.source import SourceMismatchError
from lazyfx.shared.source.writable import characters, check_size
from lazyfx.v1 import graph_pb2
from lazyfx_server.jobs.rendering import performed, render
from lazyfx_server.lazy import FITTED, RecompileCost, RecompileLedger, lazy_class, lazy_job
from lazyfx_server.passes import Driver, PassError, PassLimits, Pipeline
from lazyfx_server.passes.analysis.attribute_memory import remember_storage
from lazyfx_server.passes.analysis.output_counts import MAX_OUTPUTS
from lazyfx_server.passes.pass_requests import pipeline_of
from lazyfx_server.passes.pipeline_report import report_of
from lazyfx_server.passes.plugins import registry_of_targets
from lazyfx_server.passes.rewrites import RewriteReader
from lazyfx_server.passes.verify import NumericVerifier
from lazyfx_server.security.checked_graph import CheckedGraph, check
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)

# Its entries are keyed by their bytes alone and immutable, whoever sent them.
_REWRITES = RewriteReader()

_KINDS = {
    "invalid": worker.JOB_ERROR_KIND_INVALID,
    "limit": worker.JOB_ERROR_KIND_LIMIT,
    "precondition": worker.JOB_ERROR_KIND_PRECONDITION,
    "internal": worker.JOB_ERROR_KIND_INTERNAL,
}


def run_job(data: bytes) -> bytes:
    """Run one serialized Job and return a serialized JobResult.

    Every exception becomes a JobError, so that only this job fails.
    """
    job = worker.Job.FromString(data)
    result = worker.JobResult()
    try:
        if job.HasField("compile"):
            ledger = RecompileLedger(_cost(job.compile))
            with lazy_job(ledger, eager=job.compile.eager):
                result.compile.CopyFrom(_compile(job.compile, ledger))
        elif job.HasField("render"):
            result.render.CopyFrom(_render(job.render))
        elif job.HasField("check"):
            _check_compiled(job.check)
            result.check.SetInParent()
        else:
            result.describe.CopyFrom(_describe())
    except PassError as error:
        result.error.CopyFrom(_pass_error(error, job.compile))
    except DecodeError as error:
        result.error.CopyFrom(_decode_error(error, job))
    except _ValuesMissing as error:
        result.error.kind = worker.JOB_ERROR_KIND_PRECONDITION
        result.error.message = "passes read the values of these tensors; upload them and try again"
        result.error.missing.extend(error.subjects)
    except SourceMismatchError as error:
        _log.error("%s", error)
        result.error.kind = worker.JOB_ERROR_KIND_SOURCE
        result.error.message = str(error)
    except UnsupportedGraphError as error:
        result.error.CopyFrom(_unsupported_error(error, job))
    except LazyfxError as error:
        result.error.kind = worker.JOB_ERROR_KIND_INVALID
        result.error.message = str(error)
    except Exception as error:  # noqa: BLE001 - an answer must go back whatever happened
        if _is_out_of_memory(error):
            result.error.kind = worker.JOB_ERROR_KIND_LIMIT
            result.error.message = (
                "the job needs more memory than a worker may use (setting worker_memory_bytes)"
            )
            return result.SerializeToString()
        _log.exception("a job failed")
        result.error.kind = worker.JOB_ERROR_KIND_INTERNAL
        result.error.message = f"{type(error).__name__} in the worker"
    return result.SerializeToString()


def _is_out_of_memory(error: Exception) -> bool:
    # Neither torch nor Python has a type of its own for these; a thread needs memory for its stack.
    texts = ("can't allocate memory", "can't start new thread")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


class _ValuesMissing(Exception):  # noqa: N818 - not a failure but a question
    """Passes read tensors whose values were not sent with the job."""

    def __init__(self, subjects: list[str]) -> None:
        self.subjects = subjects
        super().__init__()


def _cost(job: worker.CompileJob) -> RecompileCost:
    if not job.seconds_per_node:
        return FITTED
    return RecompileCost(job.seconds_per_node, job.cost_is_measured)


def _compile(job: worker.CompileJob, ledger: RecompileLedger) -> worker.CompileResult:
    started = perf_counter()
    pipeline = pipeline_of(registry_of_targets(tuple(job.plugins)), job.passes)
    # Checking builds the module; recompiles that this requests are not charged to the job.
    uncounted = lazy_class(RecompileLedger())
    limits = PassLimits.of(job.limits)
    MAX_OUTPUTS.set(limits.bound("max_outputs"))
    checked = check(
        job.body,
        limits=limits,
        presentation=job.presentation,
        module_class=uncounted,
    )
    rewrites = _REWRITES.read(job.passes, pipeline.passes, limits)
    _require_values(pipeline, checked, job)
    module = _bound(checked, job)
    moved = wire.Origins(module, checked.body)
    nodes_before = len(module.graph.nodes)
    decoded = perf_counter()
    verifier = NumericVerifier() if job.verify else None
    driver = Driver(ledger, limits, eager=job.eager, verifier=verifier)
    if verifier is not None:
        with ledger.in_scope("verify"):
            verifier.start(driver.adopt(module))
    outcome = pipeline.run_in_job(module, driver, rewrites)
    passed = perf_counter()
    result = worker.CompileResult(performed=performed(ledger))
    result.report.CopyFrom(report_of(outcome, ledger))
    if verifier is not None:
        result.report.verified.passes = verifier.passes
        result.report.verified.tensors = verifier.tensors
        result.report.verified.max_difference = verifier.max_difference
    nodes_after = _encode(checked, outcome.module, moved, result)
    finished = perf_counter()
    result.codec_seconds = (decoded - started) + (finished - passed)
    report = result.report
    report.seconds = finished - started
    report.pass_seconds = passed - decoded
    report.nodes_before = nodes_before
    report.nodes_after = nodes_after
    report.pipeline = pipeline.spelling
    report.eager = job.eager
    return result


def _render(job: worker.RenderJob) -> worker.RenderResult:
    body = graph_pb2.GraphBody.FromString(job.graph.graph.body)
    literals = [characters(call, body.strings) for call in body.calls]
    names = job.presentation if job.HasField("presentation") else None
    try:
        check_size(body, literals, names, job.max_source_bytes)
    except DecodeError as error:
        raise DecodeError(error.reason, field="kind") from None
    try:
        return render(job)
    except SyntaxError as error:
        raise DecodeError(
            f"torch.fx cannot write this graph as Python: {error.msg}", field="kind"
        ) from error


def _check_compiled(job: worker.CheckJob) -> None:
    """Check a compiled graph of another server as the graph of a caller is checked.

    Raises:
        DecodeError: It is not allowed, or its names do not fit.
    """
    given = job.graph.graph
    check_envelope(given)
    check(
        given.body,
        limits=PassLimits.of(job.limits),
        presentation=given.presentation,
        module_class=lazy_class(RecompileLedger()),
    )
    wire.restore_names(job.graph, None)


def _require_values(pipeline: Pipeline, checked: CheckedGraph, job: worker.CompileJob) -> None:
    """Check that the values of all tensors that passes read were sent.

    Raises:
        _ValuesMissing: Names them.
    """
    read = pipeline.values_read(checked.module)
    if not read:
        return
    given = {(value.graph, value.attribute) for value in job.values}
    places = wire.tensor_places(checked.body)
    missing = sorted(places[path] for path in read if path in places)
    subjects = [f"values/{g}/{a}" for g, a in missing if (g, a) not in given]
    if subjects:
        raise _ValuesMissing(subjects)


def _bound(checked: CheckedGraph, job: worker.CompileJob) -> GraphModule:
    """The module, with the tensor values of the job bound to it."""
    if not job.values:
        return checked.module
    body = checked.body
    data = {(value.graph, value.attribute): value.data for value in job.values}

    def bind(graph: int, number: int, row: graph_pb2.Attribute) -> torch.Tensor | None:
        found = data.get((graph, number))
        if found is None:
            return None
        description = body.tensors[row.tensor.tensor]
        value = wire.tensor_from_bytes(description, found)
        if row.tensor.role == graph_pb2.TENSOR_ROLE_PARAMETER:
            value = torch.nn.Parameter(value, requires_grad=description.requires_grad)
        remember_storage(value, row.tensor.storage, description)
        return value

    return wire.decode(body, bind=bind)


def _encode(
    checked: CheckedGraph, module: GraphModule, moved: wire.Origins, result: worker.CompileResult
) -> int:
    """Write the module into `result`; return its nodes."""
    _unregister_created(module, moved)
    encoded = wire.encode(module)
    body = graph_pb2.GraphBody.FromString(encoded.body)
    origins = wire.provenance(checked.body, encoded, moved)
    result.graph.CopyFrom(graph_pb2.CompiledGraph(graph=encoded.message(), provenance=origins))
    sent = set()
    for graph, origin, objects in zip(body.graphs, origins, encoded.attributes, strict=True):
        for row, source, tensor in zip(graph.attributes, origin.attributes, objects, strict=True):
            content = row.tensor.content
            if source or not content.sha256 or content.sha256 in sent:
                continue
            assert isinstance(tensor, torch.Tensor)
            sent.add(content.sha256)
            result.constants.add(digest=content, data=bytes(wire.tensor_bytes(tensor)))
    return encoded.nodes


def _unregister_created(module: GraphModule, moved: wire.Origins) -> None:
    """Turn tensors created by passes into plain attributes, wherever they were moved.

    torch registers a tensor that it moves into a submodule as a buffer. Values of buffers belong to
    the caller; only values of plain attributes are returned with the graph.
    """
    for part in module.modules():
        if not isinstance(part, GraphModule):
            continue
        for registered in (part._buffers, part._parameters):  # noqa: SLF001 - no public way out
            for name, tensor in list(registered.items()):
                if tensor is not None and not tensor.is_meta and moved.of(tensor) is None:
                    del registered[name]
                    setattr(part, name, tensor.detach())


def _pass_error(error: PassError, job: worker.CompileJob) -> worker.JobError:
    # A node of a pattern already has its sender's name.
    if error.node is not None and error.graph is not None:
        error = error.of_node(_caller_name(error.node, error.graph, job), error.graph)
    return worker.JobError(
        kind=_KINDS[error.kind],
        message=error.description,
        field=error.field,
        node=error.node or "",
    )


def _decode_error(error: DecodeError, job: worker.Job) -> worker.JobError:
    node = ""
    if error.node is not None:
        name = _name(error.graph or 0, error.node, job.compile.presentation)
        node = name or f"n{error.node}"
        error = error.called(name) if name else error
    field = error.field
    if job.HasField("compile"):
        field = joined("graph", field or "body")
    elif job.HasField("check"):
        field = joined("graph", field)
    return worker.JobError(
        kind=worker.JOB_ERROR_KIND_INVALID,
        message=error.description,
        field=field or "module_key",
        node=node,
    )


def _unsupported_error(error: UnsupportedGraphError, job: worker.Job) -> worker.JobError:
    """The error for a result that cannot be encoded, or an artifact that cannot be rendered."""
    if error.node is not None and job.HasField("compile"):
        error = error.called(_caller_name(error.node, "", job.compile))
    return worker.JobError(
        kind=worker.JOB_ERROR_KIND_INVALID,
        message=str(error),
        field="passes" if job.HasField("compile") else "kind",
        node=error.node or "",
    )


def _caller_name(node: str, path: str, job: worker.CompileJob) -> str:
    """The caller's name of a node; nodes that they sent are named "n<i>" in the graph at `path`."""
    index = wire.canonical_node(node)
    if index is None or not job.presentation.graphs:
        return node
    graph = wire.graph_at(graph_pb2.GraphBody.FromString(job.body), path)
    return (_name(graph, index, job.presentation) if graph is not None else "") or node


def _name(graph: int, node: int, names: graph_pb2.Presentation) -> str:
    """The caller's name of a node; empty if there is none."""
    try:
        return wire.node_name(names.graphs[graph], node)
    except IndexError:
        return ""


def _describe() -> worker.DescribeResult:
    result = worker.DescribeResult()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    result.devices.add(
        device="cpu",
        name=torch.backends.cpu.get_cpu_capability(),
        memory_total_bytes=memory,
        memory_free_bytes=free,
    )
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        unused, total = torch.cuda.mem_get_info(index)
        result.devices.add(
            device=f"cuda:{index}",
            name=torch.cuda.get_device_name(index),
            memory_total_bytes=total,
            memory_free_bytes=unused,
        )
    return result

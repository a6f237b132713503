"""Renders artifacts of a compiled graph: source, code, pickle, package, picture."""

from __future__ import annotations

from time import perf_counter

import torch
from torch.fx import GraphModule

from lazyfx.shared import wire
from lazyfx.shared.source.assembly import GeneratedSource
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.jobs.artifact_kinds import ARTIFACT_KINDS, ArtifactKind, source_message
from lazyfx_server.lazy.lazy_module import generate_source, lazy_class
from lazyfx_server.lazy.recompile_ledger import RecompileLedger
from lazyfx_server.v1 import worker_pb2 as worker


def render(job: worker.RenderJob) -> worker.RenderResult:
    """Render one artifact; Python source is generated at most once, and not for a picture.

    Raises:
        DecodeError: The caller's names do not fit the graph.
    """
    started = perf_counter()
    kind = ARTIFACT_KINDS[job.kind]
    ledger = RecompileLedger()
    module = _module(job, kind, ledger)
    result = worker.RenderResult(media_type=kind.media_type)
    if kind.write is not None:
        if job.HasField("source"):
            source = _source_of(job.source)
        else:
            purpose = ARTIFACT_KINDS.get(job.purpose)
            source = generate_source(module, ledger, purpose.trigger if purpose else "code")
            result.source.CopyFrom(source_message(source))
        result.data = kind.write(module, source)
    else:
        assert kind.render is not None, "workers get only kinds that they render"
        result.data = kind.render(module, ledger)
    result.performed.extend(performed(ledger))
    result.seconds_per_node = ledger.cost.seconds_per_node if ledger.cost.measured else 0.0
    result.seconds = perf_counter() - started
    return result


def performed(ledger: RecompileLedger) -> list[worker.PerformedRecompiles]:
    """The code generations in a job's ledger, by pass and trigger."""
    rows: dict[tuple[str, str], worker.PerformedRecompiles] = {}
    for event in ledger.events:
        scope = "" if event.scope == "pipeline" else event.scope
        row = rows.setdefault(
            (scope, event.trigger),
            worker.PerformedRecompiles(pass_name=scope, trigger=event.trigger),
        )
        row.count += 1
        row.seconds += event.seconds
    return list(rows.values())


def _module(job: worker.RenderJob, kind: ArtifactKind, ledger: RecompileLedger) -> GraphModule:
    graph = job.graph.graph
    asked = job.presentation if job.HasField("presentation") else None
    presentation = wire.restore_names(job.graph, asked)
    constants = {constant.digest.sha256: constant.data for constant in job.constants}
    body = graph_pb2.GraphBody.FromString(graph.body)

    def bind(_graph: int, _number: int, row: graph_pb2.Attribute) -> torch.Tensor | None:
        data = constants.get(row.tensor.content.sha256)
        if data is None:
            return None
        return wire.tensor_from_bytes(body.tensors[row.tensor.tensor], data)

    def sign(root: torch.fx.Graph) -> None:
        if presentation.HasField("signature"):
            wire.apply_signature(root, presentation.signature)

    lazy = lazy_class(ledger)
    return wire.decode(
        body, presentation, bind=bind, module_class=lazy, on_root=sign, metadata=kind.metadata
    )


def _source_of(message: pb.GeneratedSource) -> GeneratedSource:
    children = {child.path: _source_of(child.source) for child in message.children}
    return GeneratedSource(message.code, message.import_block, children)

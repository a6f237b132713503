"""Renders artifacts of a compiled graph: source, code, pickle, package, picture."""

from __future__ import annotations

from time import perf_counter

import torch
from torch.fx import GraphModule

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared import wire
from lazyfx.shared.formats.export_checks import enter_autocast_when_run
from lazyfx.shared.formats.exported_program import export_module
from lazyfx.shared.formats.pickling import package_module, pickle_module
from lazyfx.shared.formats.torchscript import eager_copy, script_module
from lazyfx.shared.source import checked_generation
from lazyfx.shared.source.assembly import GeneratedSource
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.jobs.graph_picture import draw
from lazyfx_server.lazy.lazy_module import (
    LazyModule,
    generate_source,
    lazy_class,
    record_performed_together,
)
from lazyfx_server.lazy.recompile_ledger import RecompileLedger, Trigger
from lazyfx_server.v1 import worker_pb2 as worker

_MEDIA_TYPES = {
    pb.ARTIFACT_KIND_CODE: "text/x-python; charset=utf-8",
    pb.ARTIFACT_KIND_SOURCE: "application/x-protobuf",
    pb.ARTIFACT_KIND_PICKLE: "application/octet-stream",
    pb.ARTIFACT_KIND_PACKAGE: "application/zip",
    pb.ARTIFACT_KIND_PICTURE: "image/svg+xml",
    pb.ARTIFACT_KIND_TORCHSCRIPT: "application/zip",
    pb.ARTIFACT_KIND_EXPORTED_PROGRAM: "application/zip",
}
_TRIGGERS: dict[int, Trigger] = {
    pb.ARTIFACT_KIND_CODE: "code",
    pb.ARTIFACT_KIND_PICKLE: "pickle",
    pb.ARTIFACT_KIND_PACKAGE: "package",
}


def render(job: worker.RenderJob) -> worker.RenderResult:
    """Render one artifact; Python source is generated at most once, and not for a picture.

    Raises:
        DecodeError: The caller's names do not fit the graph.
    """
    started = perf_counter()
    ledger = RecompileLedger()
    module = _module(job, ledger)
    result = worker.RenderResult(media_type=_MEDIA_TYPES[job.kind])
    if job.kind == pb.ARTIFACT_KIND_PICTURE:
        result.data = draw(module).encode()
    elif job.kind == pb.ARTIFACT_KIND_TORCHSCRIPT:
        result.data = render_torchscript(module, ledger)
    elif job.kind == pb.ARTIFACT_KIND_EXPORTED_PROGRAM:
        result.data = render_exported_program(module, ledger)
    else:
        if job.HasField("source"):
            source = _source_of(job.source)
        else:
            trigger = _TRIGGERS.get(job.purpose, "code")
            source = generate_source(module, ledger, trigger)
            result.source.CopyFrom(_message_of(source))
        result.data = _from_source(job.kind, module, source)
    result.performed.extend(performed(ledger))
    result.seconds_per_node = ledger.cost.seconds_per_node if ledger.cost.measured else 0.0
    result.seconds = perf_counter() - started
    return result


def render_torchscript(module: GraphModule, ledger: RecompileLedger) -> bytes:
    """Render TorchScript, from an eager module, since scripting needs one.

    Raises:
        UnsupportedGraphError: The graph cannot be expressed in TorchScript, or the values of its
            tensors are not on the server.
    """
    _require_local_values(module, "script it on the client: RemoteModule.save_torchscript")
    started = perf_counter()
    eager = eager_copy(module, checked_generation)
    seconds = perf_counter() - started
    with ledger.triggered_by("torchscript"):
        record_performed_together(eager, ledger, seconds, executed=True)
    return script_module(eager)


def render_exported_program(module: GraphModule, ledger: RecompileLedger) -> bytes:
    """Render an ExportedProgram; torch.export calls the module, so its code is generated.

    Raises:
        UnsupportedGraphError: torch.export cannot express the graph, or the values of its
            tensors are not on the server.
    """
    _require_local_values(module, "export it on the client: RemoteModule.save_exported_program")
    with ledger.triggered_by("exported_program"):
        enter_autocast_when_run(module)  # before the code is generated, because this makes it stale
        for part in module.modules():
            if isinstance(part, LazyModule):
                part.real_recompile()  # torch.export reads the signature of forward
        return export_module(module)


def _require_local_values(module: GraphModule, remedy: str) -> None:
    away = [name for name, tensor in module.state_dict().items() if tensor.is_meta]
    if away:
        raise UnsupportedGraphError(
            f"the graph contains tensors whose values are not on the server ({away[0]}, ...)",
            remedy=remedy,
        )


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


def _module(job: worker.RenderJob, ledger: RecompileLedger) -> GraphModule:
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
        body, presentation, bind=bind, module_class=lazy, on_root=sign, metadata=_metadata(job)
    )


def _metadata(job: worker.RenderJob) -> wire.Metadata:
    described = {pb.ARTIFACT_KIND_PICTURE, pb.ARTIFACT_KIND_EXPORTED_PROGRAM}
    return "lazy" if job.kind in described else "none"


def _from_source(kind: int, module: GraphModule, source: GeneratedSource) -> bytes:
    # Both generate the source again when they are loaded. That it matches the graph is verified
    # here, when it is generated.
    if kind == pb.ARTIFACT_KIND_PICKLE:
        return pickle_module(module)
    if kind == pb.ARTIFACT_KIND_PACKAGE:
        return package_module(module)
    if kind == pb.ARTIFACT_KIND_SOURCE:
        return _message_of(source).SerializeToString(deterministic=True)
    return source.code.encode()


def _message_of(source: GeneratedSource) -> pb.GeneratedSource:
    children = [
        pb.GeneratedSourceChild(path=path, source=_message_of(child))
        for path, child in sorted(source.children.items())
    ]
    return pb.GeneratedSource(code=source.code, import_block=source.import_block, children=children)


def _source_of(message: pb.GeneratedSource) -> GeneratedSource:
    children = {child.path: _source_of(child.source) for child in message.children}
    return GeneratedSource(message.code, message.import_block, children)

"""The kinds of artifact, one row each, and how a worker renders them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from types import MappingProxyType
from typing import Final, Literal

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
from lazyfx_server.jobs.graph_picture import draw
from lazyfx_server.lazy.lazy_module import LazyModule, record_performed_together
from lazyfx_server.lazy.recompile_ledger import RecompileLedger, Trigger


@dataclass(frozen=True, slots=True)
class ArtifactKind:
    """One kind of artifact.

    Attributes:
        media_type: Its media type.
        maker: What creates it: the compile itself, whose results are stored; a job that renders it
            with the caller's names; or a native job, for the caller's machine and settings.
        render: Renders it from the module.
        write: Renders it from the module and its generated source, which is kept for other
            artifacts with the same names.
        trigger: The trigger of code generation in the ledger.
        metadata: The node metadata that rendering reads.
        holds_constants: Whether it contains the constants that passes created.
        is_text: Whether its bytes are UTF-8.
    """

    media_type: str
    maker: Literal["compile", "render", "native"] = "render"
    render: Callable[[GraphModule, RecompileLedger], bytes] | None = None
    write: Callable[[GraphModule, GeneratedSource], bytes] | None = None
    trigger: Trigger = "code"
    metadata: wire.Metadata = "none"
    holds_constants: bool = False
    is_text: bool = False


def render_picture(module: GraphModule, _ledger: RecompileLedger) -> bytes:
    """A drawing of a module; generates no source."""
    return draw(module).encode()


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


def source_message(source: GeneratedSource) -> pb.GeneratedSource:
    """Generated source as a message."""
    children = [
        pb.GeneratedSourceChild(path=path, source=source_message(child))
        for path, child in sorted(source.children.items())
    ]
    return pb.GeneratedSource(code=source.code, import_block=source.import_block, children=children)


_ZIP: Final = "application/zip"
_BYTES: Final = "application/octet-stream"
_MESSAGE: Final = "application/x-protobuf"

ARTIFACT_KINDS: Final[Mapping[pb.ArtifactKind.ValueType, ArtifactKind]] = MappingProxyType(
    {
        pb.ARTIFACT_KIND_CODE: ArtifactKind(
            "text/x-python; charset=utf-8",
            write=lambda _module, source: source.code.encode(),
            is_text=True,
        ),
        # Both generate the source again when they are loaded. That it matches the graph is verified
        # here, when it is generated.
        pb.ARTIFACT_KIND_PICKLE: ArtifactKind(
            _BYTES,
            write=lambda module, _source: pickle_module(module),
            trigger="pickle",
            holds_constants=True,
        ),
        pb.ARTIFACT_KIND_PACKAGE: ArtifactKind(
            _ZIP,
            write=lambda module, _source: package_module(module),
            trigger="package",
            holds_constants=True,
        ),
        pb.ARTIFACT_KIND_GRAPH: ArtifactKind(_MESSAGE, "compile"),
        pb.ARTIFACT_KIND_PICTURE: ArtifactKind(
            "image/svg+xml", render=render_picture, metadata="lazy", is_text=True
        ),
        pb.ARTIFACT_KIND_CONSTANT: ArtifactKind(_BYTES, "compile"),
        pb.ARTIFACT_KIND_SOURCE: ArtifactKind(
            _MESSAGE,
            write=lambda _module, source: source_message(source).SerializeToString(
                deterministic=True
            ),
        ),
        pb.ARTIFACT_KIND_TORCHSCRIPT: ArtifactKind(
            _ZIP, render=render_torchscript, holds_constants=True
        ),
        # They are compiled by `native.making`, which only native workers import.
        pb.ARTIFACT_KIND_INDUCTOR: ArtifactKind(_MESSAGE, "native"),
        pb.ARTIFACT_KIND_AOT_INDUCTOR: ArtifactKind(_MESSAGE, "native"),
        pb.ARTIFACT_KIND_EXPORTED_PROGRAM: ArtifactKind(
            _ZIP, render=render_exported_program, metadata="lazy", holds_constants=True
        ),
    }
)


def is_native(kind: pb.ArtifactKind.ValueType) -> bool:
    """Whether a kind, which may be unknown, is built by native jobs."""
    row = ARTIFACT_KINDS.get(kind)
    return row is not None and row.maker == "native"

"""The flows of a compiled module, which the asynchronous and the blocking handle both run."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.fx import GraphModule

from lazyfx.answers.compiled_graphs import CheckedCompiledGraph, check_compiled_graph
from lazyfx.answers.downloads import OnProgress
from lazyfx.answers.pictures import sanitize_picture
from lazyfx.answers.responses import read_message, read_text
from lazyfx.artifacts.aot_packages import write_package
from lazyfx.artifacts.fetching import ArtifactClient, ArtifactFetcher
from lazyfx.artifacts.native_answers import read_artifact
from lazyfx.artifacts.python_files import PythonFile, python_file
from lazyfx.artifacts.rebuilding import checked_source, rebuild, rebuild_canonical
from lazyfx.capture.preparing import Prepared
from lazyfx.errors import LazyfxError
from lazyfx.flows import Flow, Lock, Locked, Offload
from lazyfx.report import Report, cache_of, report_of
from lazyfx.shared.formats.exported_program import export_module
from lazyfx.shared.formats.pickling import package_module, pickle_module
from lazyfx.shared.formats.torchscript import eager_copy, script_module
from lazyfx.shared.forward_levels import guard_devices
from lazyfx.shared.native.graph_tensors import own_tensors
from lazyfx.shared.native.native_request import native_request
from lazyfx.shared.native.text_tokens import restoring_texts, texts_of
from lazyfx.shared.printable import printable
from lazyfx.shared.source.assembly import GeneratedSource
from lazyfx.shared.torch_lazy_class import LazyGraphModule
from lazyfx.shared.wire.reading.decode import read_devices
from lazyfx.trust.verifying import Provenance
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

Built = TypeVar("Built")

# Artifacts that depend on more than the module: provenance describes the latest fetched.
_NATIVE = (pb.ARTIFACT_KIND_INDUCTOR, pb.ARTIFACT_KIND_AOT_INDUCTOR)
# Built by this client from the graph, and not signed by the server.
_CLIENT_KINDS = (
    pb.ARTIFACT_KIND_PICKLE,
    pb.ARTIFACT_KIND_PACKAGE,
    pb.ARTIFACT_KIND_TORCHSCRIPT,
    pb.ARTIFACT_KIND_EXPORTED_PROGRAM,
)
# torch rebuilds and scripts modules with global tables.
_building = threading.Lock()


class ModuleFlows:
    """The flows of one compiled module; `AsyncRemoteModule` documents each.

    Args:
        client: Fetches artifacts.
        prepared: The request.
        response: The server's response.
        new_lock: Creates a lock of the driver's kind.
    """

    def __init__(
        self,
        client: ArtifactClient,
        prepared: Prepared,
        response: pb.CompileResponse,
        new_lock: Callable[[], Lock],
    ) -> None:
        self._client = client
        self.prepared = prepared
        self.cache = cache_of(response.cache)
        self.artifacts = ArtifactFetcher(client, prepared, response, new_lock())
        self.built: GraphModule | None = None
        self._building = new_lock()
        self._performed_here: list[int] = []  # appended to by any thread
        self._compiled: CheckedCompiledGraph | None = None

    @property
    def key(self) -> str:
        """Hex of the module's key."""
        return self.artifacts.response.module_key.hex()

    @property
    def digest(self) -> str:
        """Hex of the digest of the graph that was sent."""
        return self.prepared.encoded.digest.hex()

    @property
    def report(self) -> Report:
        """What the compile did, including recompiles that later fetches caused."""
        return report_of(self.artifacts.report, performed_here=sum(self._performed_here))

    def code(self) -> Flow[str]:
        """The generated source, for people to read."""
        with self._client.refusals.counted():
            text = read_text((yield from self.artifacts.get(pb.ARTIFACT_KIND_CODE)))
            return printable(text, len(text))

    def picture(self) -> Flow[str]:
        """A drawing of the graph as SVG."""
        with self._client.refusals.counted():
            return sanitize_picture((yield from self.artifacts.get(pb.ARTIFACT_KIND_PICTURE)))

    def graph_module(self) -> Flow[GraphModule]:
        """A new GraphModule built from graph data."""
        rebuilt = yield from self._rebuild(GraphModule)
        self.prepared.captured.apply_input_checks(rebuilt)
        self._performed_here.append(_graph_modules(rebuilt))
        return rebuilt

    def callable_module(self) -> Flow[GraphModule]:
        """The module that the handle calls, built on first use."""
        if self.built is None:
            yield Locked(self._building, self._build_callable())
        assert self.built is not None, "it was built"
        return self.built

    def _build_callable(self) -> Flow[None]:
        if self.built is None:
            self.built = yield from self.graph_module()

    def pickle(self) -> Flow[bytes]:
        """The module as a pickle."""
        rebuilt = yield from self._rebuild(LazyGraphModule)
        data: bytes = yield Offload(partial(pickle_module, rebuilt))
        return data

    def package(self) -> Flow[bytes]:
        """The module as a torch.package archive."""
        rebuilt = yield from self._rebuild(LazyGraphModule)
        data: bytes = yield Offload(partial(package_module, rebuilt))
        return data

    def torchscript(self) -> Flow[bytes]:
        """The module as a TorchScript archive."""
        rebuilt = yield from self._rebuild(LazyGraphModule)
        self._performed_here.append(_graph_modules(rebuilt))
        data: bytes = yield Offload(lambda: _alone(lambda: script_module(eager_copy(rebuilt))))
        return data

    def exported_program(self) -> Flow[bytes]:
        """The module as an ExportedProgram."""
        rebuilt = yield from self._rebuild(GraphModule)
        self._performed_here.append(1)
        data: bytes = yield Offload(partial(export_module, rebuilt))
        return data

    def aot_request(self, mode: str | None, options: Mapping[str, Any] | None) -> pb.NativeRequest:
        """The options of a package for serving."""
        encoded = self.prepared.encoded
        body = graph_pb2.GraphBody.FromString(encoded.body)
        with torch.no_grad():
            return native_request(read_devices(body, encoded.presentation), mode, options or {})

    def save_aot_inductor(
        self,
        path: str | Path,
        request: pb.NativeRequest,
        *,
        timeout: float | None,
        on_progress: OnProgress | None,
    ) -> Flow[Path]:
        """Write a package for serving."""
        _require_folder(Path(path))
        wanted = pb.GetArtifactRequest(kind=pb.ARTIFACT_KIND_AOT_INDUCTOR, native=request)
        texts = texts_of(self.prepared.encoded.body)
        with restoring_texts(texts):
            data = yield from self.artifacts.fetch(wanted, timeout=timeout, on_progress=on_progress)
        package = read_artifact(pb.AotPackage, data, request)
        compiled = yield from self._compiled_graph()
        constants = self.artifacts.constants
        canonical = yield from self._build(
            lambda: rebuild_canonical(compiled, self.prepared, constants)
        )
        tensors = own_tensors(canonical)
        written: Path = yield Offload(partial(write_package, package, tensors, Path(path), texts))
        return written

    def native(
        self, request: pb.NativeRequest, *, timeout: float | None, on_progress: OnProgress | None
    ) -> Flow[bytes]:
        """The native artifact, as bytes that the client can load."""
        wanted = pb.GetArtifactRequest(kind=pb.ARTIFACT_KIND_INDUCTOR, native=request)
        return self.artifacts.fetch(wanted, timeout=timeout, on_progress=on_progress)

    def save(self, path: str | Path, data: Flow[bytes]) -> Flow[Path]:
        """Write the result of another flow to a file."""
        written: Path = yield Offload(partial(_write, Path(path), (yield from data)))
        return written

    def python_file(self, name: str) -> Flow[PythonFile]:
        """The module as a Python file that needs only torch, checked against the graph."""
        source = yield from self.source()
        module = yield from self._rebuild(LazyGraphModule)
        original = self.prepared.captured.module
        file: PythonFile = yield Offload(partial(python_file, module, source, original, name))
        return file

    def save_code(self, path: str | Path) -> Flow[Path]:
        """Write `python_file` to a file, and its constants next to it."""
        path = Path(path)
        file = yield from self.python_file(path.name)
        yield Offload(partial(file.save, path))
        return path

    def provenance(self, kind: str) -> Flow[Provenance]:
        """The verified provenance of an artifact."""
        value = pb.ArtifactKind.DESCRIPTOR.values_by_name.get(f"ARTIFACT_KIND_{kind.upper()}")
        if value is None or value.number in (0, pb.ARTIFACT_KIND_CONSTANT):
            raise LazyfxError(f"{kind!r} is not a kind of artifact, e.g. 'graph' or 'code'")
        wanted = pb.ArtifactKind.Value(value.name)
        if wanted in _CLIENT_KINDS:
            yield from self.artifacts.get(pb.ARTIFACT_KIND_GRAPH)
            found = yield from self.artifacts.verify_provenance(pb.ARTIFACT_KIND_GRAPH)
            return replace(found, made_into=kind.lower())
        if wanted not in _NATIVE:
            yield from self.artifacts.get(wanted)
        return (yield from self.artifacts.verify_provenance(wanted))

    def source(self) -> Flow[GeneratedSource]:
        """The source that the server generated, checked against the graph."""
        data = yield from self.artifacts.get(pb.ARTIFACT_KIND_SOURCE)
        module = yield from self._rebuild(LazyGraphModule)
        return (
            yield from self._build(
                lambda: checked_source(read_message(pb.GeneratedSource, data), module)
            )
        )

    def _compiled_graph(self) -> Flow[CheckedCompiledGraph]:
        if self._compiled is None:
            data = yield from self.artifacts.graph_and_constants()
            body = graph_pb2.GraphBody.FromString(self.prepared.encoded.body)
            passes, bounds = self.prepared.requests.whole.passes, self._client.bounds
            self._compiled = yield from self._build(
                lambda: check_compiled_graph(data, body, passes, bounds)
            )
        return self._compiled

    def _rebuild(self, module_class: type[GraphModule]) -> Flow[GraphModule]:
        compiled = yield from self._compiled_graph()
        constants, seconds = self.artifacts.constants, self._client.bounds.max_seconds
        return (
            yield from self._build(
                lambda: rebuild(compiled, self.prepared, constants, module_class, seconds)
            )
        )

    def _build(self, work: Callable[[], Built]) -> Flow[Built]:
        """Build something from what the server sent, and count refusals."""
        guard_devices()
        with self._client.refusals.counted():
            built: Built = yield Offload(partial(_alone, work))
        return built


def _alone(work: Callable[[], Built]) -> Built:
    with _building:
        return work()


def _graph_modules(module: GraphModule) -> int:
    return sum(isinstance(part, GraphModule) for part in module.modules())


def _require_folder(path: Path) -> None:
    """Check before a long compile that its result can be written.

    Raises:
        OSError: The path is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such folder", str(path.parent))


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path

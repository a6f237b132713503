"""Handles to compiled modules: nothing is generated or sent until it is used."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from lazyfx.report import Cache, Report, cache_of, report_of
from lazyfx.shared.formats.exported_program import export_module
from lazyfx.shared.formats.pickling import package_module, pickle_module
from lazyfx.shared.formats.torchscript import eager_copy, script_module
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

# Kinds that depend on more than the module: provenance describes the one fetched last.
_NATIVE = (pb.ARTIFACT_KIND_INDUCTOR, pb.ARTIFACT_KIND_AOT_INDUCTOR)
# Built by this client from the graph, and not signed by the server.
_CLIENT_KINDS = (
    pb.ARTIFACT_KIND_PICKLE,
    pb.ARTIFACT_KIND_PACKAGE,
    pb.ARTIFACT_KIND_TORCHSCRIPT,
    pb.ARTIFACT_KIND_EXPORTED_PROGRAM,
)


class AsyncRemoteModule:
    """A compiled module on a server.

    Attributes:
        key: Hex of the module's key.
        cache: Hit, miss or joined, and why.
    """

    def __init__(
        self, fetcher: ArtifactClient, prepared: Prepared, response: pb.CompileResponse
    ) -> None:
        self._fetcher = fetcher
        self._prepared = prepared
        self._cache = cache_of(response.cache)
        self._artifacts = ArtifactFetcher(fetcher, prepared, response)
        self._performed_here = 0
        self._callable: GraphModule | None = None
        self._compiled: CheckedCompiledGraph | None = None

    @property
    def key(self) -> str:
        """Hex of the module's key."""
        return self._artifacts.response.module_key.hex()

    @property
    def digest(self) -> str:
        """Hex of the digest of the graph that was sent."""
        return self._prepared.encoded.digest.hex()

    @property
    def cache(self) -> Cache:
        """Hit, miss or joined, and why."""
        return self._cache

    @property
    def report(self) -> Report:
        """What the compile did, including recompiles that later fetches caused."""
        return report_of(self._artifacts.report, performed_here=self._performed_here)

    async def code(self) -> str:
        """The generated Python source, with the caller's own names, for people to read.

        Raises:
            DecodeError: The server sent something other than text.
            ServiceError: The server cannot render it.
        """
        with self._fetcher.refusals.counted():
            text = read_text(await self._artifacts.get(pb.ARTIFACT_KIND_CODE))
            return printable(text, len(text))

    async def picture(self) -> str:
        """A drawing of the graph: SVG text without scripts and external references.

        Raises:
            DecodeError: The server sent something else.
            ServiceError: The server cannot draw it.
        """
        with self._fetcher.refusals.counted():
            return sanitize_picture(await self._artifacts.get(pb.ARTIFACT_KIND_PICTURE))

    async def graph_module(self) -> GraphModule:
        """A new GraphModule built from graph data, with the caller's own parameters.

        No pickle is opened. Changes to the module do not affect this handle.

        Raises:
            DecodeError: The server sent something that is not a graph.
            ServiceError: The server cannot send it.
        """
        rebuilt = self._rebuild(await self._compiled_graph(), GraphModule)
        self._prepared.captured.apply_input_checks(rebuilt)
        self._performed_here += _graph_modules(rebuilt)
        return rebuilt

    @property
    def built(self) -> GraphModule | None:
        """The module that this handle calls, or None before the first call."""
        return self._callable

    async def callable_module(self) -> GraphModule:
        """The module that this handle calls, built on first use."""
        if self._callable is None:
            self._callable = await self.graph_module()
        return self._callable

    async def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """Call the module with the inputs that the caller's own graph takes."""
        return (await self.callable_module())(*inputs, **kwargs)

    async def pickle(self) -> bytes:
        """The module as a pickle that loads with torch alone, for `pickle.load`, not `torch.load`.

        It contains the graph itself, so the loaded module computes what this one does. The client
        builds it from graph data: weights never leave this process, and no pickle of the server is
        used.

        Raises:
            UnsupportedGraphError: Something in it cannot be pickled; names it.
            DecodeError: The server sent something that is not a graph.
            ServiceError: The server cannot send the graph.
        """
        rebuilt = self._rebuild(await self._compiled_graph(), LazyGraphModule)
        return await asyncio.to_thread(pickle_module, rebuilt)

    async def package(self) -> bytes:
        """The module as a torch.package archive; see `pickle` for its content.

        `PackageImporter(path).load_pickle("module", "module.pkl")` of torch.package reads it.
        """
        rebuilt = self._rebuild(await self._compiled_graph(), LazyGraphModule)
        return await asyncio.to_thread(package_module, rebuilt)

    async def torchscript(self) -> bytes:
        """The module as a TorchScript archive for `torch.jit.load`, scripted here.

        It takes the graph's inputs positionally and returns what the model returns: a tensor, a
        tuple, a list, or a dict (for classes like a dict too).

        Raises:
            UnsupportedGraphError: The graph, or its result, cannot be expressed in TorchScript;
                names the node or the type.
        """
        rebuilt = self._rebuild(await self._compiled_graph(), LazyGraphModule)
        self._performed_here += _graph_modules(rebuilt)
        return script_module(eager_copy(rebuilt))

    async def save_torchscript(self, path: str | Path) -> Path:
        """Write `torchscript()` to a file, for `torch.jit.load`, and return its path."""
        return await asyncio.to_thread(_write, Path(path), await self.torchscript())

    async def exported_program(self) -> bytes:
        """The module as an ExportedProgram, as torch.export.save writes it.

        It is called like the captured module, and symbolic sizes stay symbolic. The client exports
        it, with the caller's own tensors.

        Raises:
            UnsupportedGraphError: torch.export cannot express the graph; says why.
        """
        compiled = await self._compiled_graph()
        self._performed_here += 1
        return await asyncio.to_thread(lambda: export_module(self._rebuild(compiled, GraphModule)))

    async def save_exported_program(self, path: str | Path) -> Path:
        """Write `exported_program()` to a file, for `torch.export.load`, and return its path."""
        return await asyncio.to_thread(_write, Path(path), await self.exported_program())

    def aot_request(
        self, *, mode: str | None = None, options: Mapping[str, Any] | None = None
    ) -> pb.NativeRequest:
        """What `save_aot_inductor` depends on besides the module: this machine and its settings.

        Args:
            mode: A mode of torch.compile, e.g. "max-autotune-no-cudagraphs".
            options: Settings of Inductor; docs/training.md lists the supported ones.

        Raises:
            LazyfxError: A setting cannot be sent to a server; names it.
        """
        encoded = self._prepared.encoded
        body = graph_pb2.GraphBody.FromString(encoded.body)
        with torch.no_grad():
            return native_request(read_devices(body, encoded.presentation), mode, options or {})

    async def save_aot_inductor(
        self,
        path: str | Path,
        request: pb.NativeRequest | None = None,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Path:
        """Write a package for serving, compiled by the server with AOTInductor.

        `torch._inductor.aoti_load_package(path)` returns a function that takes the graph's inputs
        positionally and returns its tensors in a list. The server compiles without the values of
        the weights; the client writes them into the file.

        Args:
            path: The file; its name should end in .pt2, as torch requires.
            request: From `aot_request`, for custom settings.
            timeout: Timeout of the server, in seconds.
            on_progress: Called with the progress of the compile.

        Raises:
            OSError: The file cannot be written; if its folder does not exist, at once.
            PreconditionError: The server cannot build it; says why.
            UntrustedArtifactError: It is not signed with a trusted key.
            ServiceError: A subclass, by the status that the server returned.
        """
        _require_folder(Path(path))
        request = request or self.aot_request()
        wanted = pb.GetArtifactRequest(kind=pb.ARTIFACT_KIND_AOT_INDUCTOR, native=request)
        texts = texts_of(self._prepared.encoded.body)
        with restoring_texts(texts):
            data = await self._artifacts.fetch(wanted, timeout=timeout, on_progress=on_progress)
        package = read_artifact(pb.AotPackage, data, request)
        canonical = rebuild_canonical(
            await self._compiled_graph(), self._prepared, self._artifacts.constants
        )
        tensors = own_tensors(canonical)
        return await asyncio.to_thread(write_package, package, tensors, Path(path), texts)

    async def native(
        self,
        request: pb.NativeRequest,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> bytes:
        """The native artifact of this module, as bytes that the client can load.

        Args:
            request: Where it will run and under which settings; see `native_request`.
            timeout: Timeout of the server, in seconds.
            on_progress: Called with the progress of the compile.

        Raises:
            PreconditionError: The server cannot build it; says why.
            UntrustedArtifactError: It is not signed with a trusted key.
            ServiceError: A subclass, by the status that the server returned.
        """
        wanted = pb.GetArtifactRequest(kind=pb.ARTIFACT_KIND_INDUCTOR, native=request)
        return await self._artifacts.fetch(wanted, timeout=timeout, on_progress=on_progress)

    async def save_pickle(self, path: str | Path) -> Path:
        """Write `pickle()` to a file, for `pickle.load`, and return its path."""
        return await asyncio.to_thread(_write, Path(path), await self.pickle())

    async def save_package(self, path: str | Path) -> Path:
        """Write `package()` to a file and return its path."""
        return await asyncio.to_thread(_write, Path(path), await self.package())

    async def python_file(self, name: str = "model.py") -> PythonFile:
        """The module as a Python file that needs only torch, checked against the graph.

        It defines a class `Module` that takes the model that was compiled, or its state_dict.
        Dict-like classes that the model returns become dicts.

        Args:
            name: Name of the file; its constants are loaded from the same folder.

        Raises:
            UnsupportedGraphError: Something in it cannot be written as Python; names it.
            ArtifactError: The server's source does not match the graph.
            ServiceError: The server cannot generate it.
        """
        source = await self.source()
        module = self._rebuild(await self._compiled_graph(), LazyGraphModule)
        original = self._prepared.captured.module
        return await asyncio.to_thread(python_file, module, source, original, name)

    async def save_code(self, path: str | Path) -> Path:
        """Write `python_file()` to a file, and return its path.

        Constants that are in no state_dict are written to a second file: `model.constants.pt` for
        `model.py`.
        """
        path = Path(path)
        file = await self.python_file(path.name)
        await asyncio.to_thread(file.save, path)
        return path

    async def provenance(self, kind: str = "graph") -> Provenance:
        """The verified provenance of an artifact: passes, versions, server and dates.

        A server signs its artifacts. This client builds pickles, packages, TorchScript and exported
        programs from the server's graph: those files are not signed, and their provenance is that
        of the graph (`kind` is "graph", `digest` the graph's), with the format in `made_into`.

        Args:
            kind: "graph", "code", "source", "picture", or "pickle", "package", "torchscript",
                "exported_program". The artifact is fetched if it has not been; "inductor" and
                "aot_inductor" must have been.

        Raises:
            UntrustedArtifactError: It is not signed with a trusted key.
            LazyfxError: Unknown kind.
            ServiceError: The server cannot build it.
        """
        value = pb.ArtifactKind.DESCRIPTOR.values_by_name.get(f"ARTIFACT_KIND_{kind.upper()}")
        if value is None or value.number in (0, pb.ARTIFACT_KIND_CONSTANT):
            raise LazyfxError(f"{kind!r} is not a kind of artifact, e.g. 'graph' or 'code'")
        wanted = pb.ArtifactKind.Value(value.name)
        if wanted in _CLIENT_KINDS:
            await self._artifacts.get(pb.ARTIFACT_KIND_GRAPH)
            found = await self._artifacts.verify_provenance(pb.ARTIFACT_KIND_GRAPH)
            return replace(found, made_into=kind.lower())
        if wanted not in _NATIVE:
            await self._artifacts.get(wanted)
        return await self._artifacts.verify_provenance(wanted)

    async def source(self) -> GeneratedSource:
        """The source that the server generated, including nested graphs, checked against the graph.

        Raises:
            DecodeError: The server sent something that is not a graph.
            ArtifactError: The server's source does not match the graph.
            ServiceError: The server cannot generate it.
        """
        data = await self._artifacts.get(pb.ARTIFACT_KIND_SOURCE)
        module = self._rebuild(await self._compiled_graph(), LazyGraphModule)
        with self._fetcher.refusals.counted():
            return checked_source(read_message(pb.GeneratedSource, data), module)

    async def _compiled_graph(self) -> CheckedCompiledGraph:
        if self._compiled is None:
            data = await self._artifacts.graph_and_constants()
            prepared = self._prepared
            with self._fetcher.refusals.counted():
                self._compiled = check_compiled_graph(
                    data,
                    graph_pb2.GraphBody.FromString(prepared.encoded.body),
                    prepared.requests.whole.passes,
                    self._fetcher.bounds,
                )
        return self._compiled

    def _rebuild(
        self, compiled: CheckedCompiledGraph, module_class: type[GraphModule]
    ) -> GraphModule:
        with self._fetcher.refusals.counted():
            return rebuild(
                compiled,
                self._prepared,
                self._artifacts.constants,
                module_class,
                self._fetcher.bounds.max_seconds,
            )


def _graph_modules(module: GraphModule) -> int:
    return sum(isinstance(part, GraphModule) for part in module.modules())


def _require_folder(path: Path) -> None:
    """Find out before a long compile that its result could not be written.

    Raises:
        OSError: The path is a folder, or its folder is not there.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such folder", str(path.parent))


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path

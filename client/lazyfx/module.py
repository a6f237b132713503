"""Handles to compiled modules: nothing is generated or sent until it is touched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch.fx import GraphModule

from lazyfx.assembly import GeneratedSource, package_module, pickle_module
from lazyfx.envelope import check_envelope
from lazyfx.errors import LazyfxError, NotFoundError
from lazyfx.lazy_class import LazyGraphModule
from lazyfx.preparing import Prepared
from lazyfx.rebuilding import rebuild
from lazyfx.report import Cache, Report, cache_of, report_of
from lazyfx.torchscript import eager_copy, script_module
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx.verifying import Provenance

OnProgress: TypeAlias = "Callable[[pb.ArtifactProgress], None]"


class Fetcher(Protocol):
    """What a handle needs of its client."""

    async def fetch(
        self,
        request: pb.GetArtifactRequest,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> tuple[bytes, pb.ArtifactTrailer]:
        """Fetch an artifact whole, and check who made it."""

    async def vouch(
        self, request: pb.GetArtifactRequest, trailer: pb.ArtifactTrailer
    ) -> Provenance:
        """Where an artifact comes from, as signed."""

    async def recompile(self, prepared: Prepared) -> pb.CompileResponse:
        """Compile again a module that has left the server's cache."""


class AsyncRemoteModule:
    """A compiled module on a server.

    Attributes:
        key: Hex of the module's key.
        cache: Hit, miss or joined, and why.
    """

    def __init__(self, fetcher: Fetcher, prepared: Prepared, response: pb.CompileResponse) -> None:
        self._fetcher = fetcher
        self._prepared = prepared
        self._response = response
        self._compile_report = response.report
        self._performed_here = 0
        self._fetched: dict[int, bytes] = {}
        self._trailers: dict[int, pb.ArtifactTrailer] = {}
        self._constants: dict[bytes, bytes] = {}
        self._callable: GraphModule | None = None
        self._lock = asyncio.Lock()

    @property
    def key(self) -> str:
        """Hex of the module's key."""
        return self._response.module_key.hex()

    @property
    def digest(self) -> str:
        """Hex of the digest of the graph that was sent."""
        return self._prepared.encoded.digest.hex()

    @property
    def cache(self) -> Cache:
        """Hit, miss or joined, and why."""
        return cache_of(self._response.cache)

    @property
    def report(self) -> Report:
        """What the compile did; recompiles include those that later touches caused."""
        return report_of(self._compile_report, performed_here=self._performed_here)

    async def code(self) -> str:
        """The generated Python source, in the caller's own names.

        Raises:
            ServiceError: The server cannot render it.
        """
        return (await self._artifact(pb.ARTIFACT_KIND_CODE)).decode()

    async def picture(self) -> str:
        """A drawing of the graph, as SVG text."""
        return (await self._artifact(pb.ARTIFACT_KIND_PICTURE)).decode()

    async def graph_module(self) -> GraphModule:
        """A new GraphModule built from graph data, with the caller's own parameters in it.

        No pickle is opened. Changing the module changes nothing here.

        Raises:
            DecodeError: The server sent something that is not a graph.
            ServiceError: The server cannot send it.
        """
        rebuilt = self._rebuild(await self._compiled_graph(), GraphModule)
        self._prepared.captured.adopt_checks(rebuilt)
        self._performed_here += _graph_modules(rebuilt)
        return rebuilt

    async def prepared_call(self) -> GraphModule:
        """The module that calls go to, built on first use."""
        if self._callable is None:
            self._callable = await self.graph_module()
        return self._callable

    async def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """Call the module with the inputs that the caller's own graph takes."""
        return (await self.prepared_call())(*inputs, **kwargs)

    async def pickle(self) -> bytes:
        """The module as a pickle that loads with torch alone.

        A graph without parameters of its own is pickled by the server. One with
        parameters is put together here, from source that the server generated: weights
        never leave.
        """
        if not self._holds_tensors:
            return await self._artifact(pb.ARTIFACT_KIND_PICKLE)
        source = await self._source(pb.ARTIFACT_KIND_PICKLE)
        return pickle_module(self._rebuild(await self._compiled_graph(), LazyGraphModule), source)

    async def package(self) -> bytes:
        """The module as a torch.package archive; see `pickle` for where it is made."""
        if not self._holds_tensors:
            return await self._artifact(pb.ARTIFACT_KIND_PACKAGE)
        source = await self._source(pb.ARTIFACT_KIND_PACKAGE)
        return package_module(self._rebuild(await self._compiled_graph(), LazyGraphModule), source)

    async def torchscript(self) -> bytes:
        """The module as a TorchScript archive for `torch.jit.load`.

        It takes the graph's inputs by place. A graph without parameters of its own is scripted
        by the server; one with parameters here, around them.

        Raises:
            UnsupportedGraphError: TorchScript has no words for the graph; names the node.
            ServiceError: The same, of the server.
        """
        if not self._holds_tensors:
            return await self._artifact(pb.ARTIFACT_KIND_TORCHSCRIPT)
        rebuilt = self._rebuild(await self._compiled_graph(), LazyGraphModule)
        self._performed_here += _graph_modules(rebuilt)
        return script_module(eager_copy(rebuilt))

    async def save_torchscript(self, path: str | Path) -> Path:
        """Write `torchscript()` to a file and return its path."""
        return await asyncio.to_thread(_write, Path(path), await self.torchscript())

    async def native(
        self,
        request: pb.NativeRequest,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> bytes:
        """What the server's Inductor made of this module, as `lazyfx.native.loading` reads it.

        Args:
            request: Where it will run and under which settings; see `lazyfx.native.requests`.
            timeout: Seconds that the server may take.
            on_progress: Told how far it is while it is being made.

        Raises:
            PreconditionError: The server cannot make it; says why.
            UntrustedArtifactError: Nobody who is trusted has signed it.
            ServiceError: One of its kinds, by the status.
        """
        wanted = pb.GetArtifactRequest(kind=pb.ARTIFACT_KIND_INDUCTOR, native=request)
        return await self._fetch(wanted, timeout=timeout, on_progress=on_progress)

    async def save_pickle(self, path: str | Path) -> Path:
        """Write `pickle()` to a file and return its path."""
        return await asyncio.to_thread(_write, Path(path), await self.pickle())

    async def save_package(self, path: str | Path) -> Path:
        """Write `package()` to a file and return its path."""
        return await asyncio.to_thread(_write, Path(path), await self.package())

    async def provenance(self, kind: str = "graph") -> Provenance:
        """Who made an artifact: passes, versions, server and dates, as signed, and checked.

        Args:
            kind: "graph", "code", "pickle", "package", "source" or "picture". The artifact is
                fetched if it has not been.

        Raises:
            UntrustedArtifactError: Nobody who is trusted has signed it.
            LazyfxError: There is no such kind.
            ServiceError: The server cannot make it.
        """
        value = pb.ArtifactKind.DESCRIPTOR.values_by_name.get(f"ARTIFACT_KIND_{kind.upper()}")
        if value is None or value.number in (0, pb.ARTIFACT_KIND_CONSTANT):
            raise LazyfxError(f"{kind!r} is not a kind of artifact, e.g. 'graph' or 'pickle'")
        wanted = pb.ArtifactKind.Value(value.name)
        await self._artifact(wanted)
        request = pb.GetArtifactRequest(module_key=self._response.module_key, kind=wanted)
        return await self._fetcher.vouch(request, self._trailers[wanted])

    @property
    def _holds_tensors(self) -> bool:
        return any(isinstance(a, torch.Tensor) for row in self._attributes for a in row)

    @property
    def _attributes(self) -> tuple[tuple[object, ...], ...]:
        return self._prepared.encoded.attributes

    async def _artifact(
        self,
        kind: pb.ArtifactKind.ValueType,
        purpose: pb.ArtifactKind.ValueType = pb.ARTIFACT_KIND_UNSPECIFIED,
    ) -> bytes:
        """An artifact of this module, fetched once."""
        async with self._lock:
            if kind not in self._fetched:
                request = pb.GetArtifactRequest(kind=kind, purpose=purpose)
                if kind != pb.ARTIFACT_KIND_GRAPH:
                    request.presentation.CopyFrom(self._prepared.encoded.presentation)
                self._fetched[kind] = await self._fetch(request)
            return self._fetched[kind]

    async def _fetch_constants(self) -> None:
        async with self._lock:
            for digest in self._response.constants:
                if digest.sha256 not in self._constants:
                    request = pb.GetArtifactRequest(kind=pb.ARTIFACT_KIND_CONSTANT, constant=digest)
                    self._constants[digest.sha256] = await self._fetch(request)

    async def _fetch(
        self,
        request: pb.GetArtifactRequest,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> bytes:
        request.module_key = self._response.module_key
        fetch = partial(self._fetcher.fetch, timeout=timeout, on_progress=on_progress)
        try:
            data, trailer = await fetch(request)
        except NotFoundError:
            # It has been evicted since; making it again gives the same module.
            again = await self._fetcher.recompile(self._prepared)
            if again.module_key != self._response.module_key:
                raise
            data, trailer = await fetch(request)
        self._trailers[request.kind] = trailer
        recompiles = self._compile_report.recompiles
        if trailer.recompiles.performed > recompiles.performed:
            report = pb.CompileReport()
            report.CopyFrom(self._compile_report)
            report.recompiles.CopyFrom(trailer.recompiles)
            report.stale = False
            self._compile_report = report
        return data

    async def _source(self, purpose: pb.ArtifactKind.ValueType) -> GeneratedSource:
        data = await self._artifact(pb.ARTIFACT_KIND_SOURCE, purpose)
        return _source_of(pb.GeneratedSource.FromString(data))

    async def _compiled_graph(self) -> graph_pb2.CompiledGraph:
        data = await self._artifact(pb.ARTIFACT_KIND_GRAPH)
        await self._fetch_constants()
        compiled = graph_pb2.CompiledGraph.FromString(data)
        check_envelope(compiled.graph)
        return compiled

    def _rebuild(
        self, compiled: graph_pb2.CompiledGraph, module_class: type[GraphModule]
    ) -> GraphModule:
        return rebuild(compiled, self._prepared, self._constants, module_class)


def _graph_modules(module: GraphModule) -> int:
    return sum(isinstance(part, GraphModule) for part in module.modules())


def _source_of(message: pb.GeneratedSource) -> GeneratedSource:
    children = {child.path: _source_of(child.source) for child in message.children}
    return GeneratedSource(message.code, message.import_block, children)


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path

"""The flows of a compiled module, which the asynchronous and the blocking handle both run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from lazyfx.answers.compiled_graphs import CheckedCompiledGraph, check_compiled_graph
from lazyfx.artifacts.artifact_table import PYTHON_FILE, Received, Recipe, find_kind
from lazyfx.artifacts.fetching import ArtifactClient, ArtifactFetcher
from lazyfx.artifacts.python_files import PythonFile
from lazyfx.capture.preparing import Prepared
from lazyfx.flows import Flow, Lock, Locked, Offload
from lazyfx.report import Cache, Report, cache_of, report_of
from lazyfx.shared.answers.downloads import OnProgress
from lazyfx.shared.forward_levels import guard_devices
from lazyfx.shared.native.native_request import native_request
from lazyfx.shared.native.text_tokens import restoring_texts, texts_of
from lazyfx.shared.wire.reading.decode import read_devices
from lazyfx.trust.verifying import Provenance
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2


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

    def artifact(
        self,
        kind: str,
        request: pb.NativeRequest | None = None,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Flow[Any]:
        """What the module becomes, by the table of kinds."""
        found = find_kind(kind)
        request = (request or self.aot_request()) if found.native else None
        return (yield from self._made(found.value, (), request, timeout, on_progress))

    def native(
        self,
        request: pb.NativeRequest,
        kept_kernels: bytes,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Flow[bytes]:
        """The native artifact, without the libraries that the caller has."""
        wanted = pb.GetArtifactRequest(
            kind=pb.ARTIFACT_KIND_INDUCTOR, native=request, kept_kernels=kept_kernels
        )
        return (yield from self._fetch_native(wanted, timeout, on_progress))

    def save(
        self,
        path: str | Path,
        kind: str,
        request: pb.NativeRequest | None = None,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Flow[Path]:
        """Write what the module becomes to a file."""
        found, path = find_kind(kind), Path(path)
        recipe = found.to_file
        _require_folder(path)
        request = (request or self.aot_request()) if found.native else None
        yield from self._made(recipe, (path,), request, timeout, on_progress)
        return path

    def python_file(self, name: str) -> Flow[PythonFile]:
        """The module as a Python file that needs only torch, checked against the graph."""
        file: PythonFile = yield from self._made(PYTHON_FILE, (Path(name),))
        return file

    def callable_module(self) -> Flow[GraphModule]:
        """The module that the handle calls, built on first use."""
        if self.built is None:
            yield Locked(self._building, self._build_callable())
        assert self.built is not None, "it was built"
        return self.built

    def _build_callable(self) -> Flow[None]:
        if self.built is None:
            self.built = yield from self.artifact("graph")

    def aot_request(
        self, mode: str | None = None, options: Mapping[str, Any] | None = None
    ) -> pb.NativeRequest:
        """The options of a package for serving."""
        encoded = self.prepared.encoded
        body = graph_pb2.GraphBody.FromString(encoded.body)
        with torch.no_grad():
            return native_request(read_devices(body, encoded.presentation), mode, options or {})

    def provenance(self, kind: str) -> Flow[Provenance]:
        """The verified provenance of an artifact."""
        found = find_kind(kind)
        if found.made_here:
            yield from self.artifacts.get(pb.ARTIFACT_KIND_GRAPH)
            signed = yield from self.artifacts.verify_provenance(pb.ARTIFACT_KIND_GRAPH)
            return replace(signed, made_into=found.name)
        if not found.native:
            yield from self.artifacts.get(found.number)
        return (yield from self.artifacts.verify_provenance(found.number))

    def _made(
        self,
        recipe: Recipe,
        path: tuple[Path, ...],
        request: pb.NativeRequest | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Flow[Any]:
        """Fetch what a recipe needs, and follow it."""
        data = b""
        if request is not None:
            wanted = pb.GetArtifactRequest(kind=recipe.fetch, native=request)
            data = yield from self._fetch_native(wanted, timeout, on_progress)
        elif recipe.fetch:
            data = yield from self.artifacts.get(recipe.fetch)
        compiled = (yield from self._compiled_graph()) if recipe.graph else None
        received = Received(
            self.prepared,
            self._client.bounds.max_seconds,
            data,
            compiled,
            self.artifacts.constants,
            request,
        )
        made = yield from self._build(partial(recipe.make, received, *path))
        if recipe.generates and compiled is not None:
            self._performed_here.append(len(compiled.body.message.graphs))
        return made

    def _fetch_native(
        self, wanted: pb.GetArtifactRequest, timeout: float | None, on_progress: OnProgress | None
    ) -> Flow[bytes]:
        """Fetch a native artifact; errors show the caller's strings."""
        with restoring_texts(texts_of(self.prepared.encoded.body)):
            return (
                yield from self.artifacts.fetch(wanted, timeout=timeout, on_progress=on_progress)
            )

    def _compiled_graph(self) -> Flow[CheckedCompiledGraph]:
        if self._compiled is None:
            data = yield from self.artifacts.graph_and_constants()
            body = graph_pb2.GraphBody.FromString(self.prepared.encoded.body)
            passes, bounds = self.prepared.requests.whole.passes, self._client.bounds
            self._compiled = yield from self._build(
                partial(check_compiled_graph, data, body, passes, bounds)
            )
        return self._compiled

    def _build(self, work: Callable[[], Any]) -> Flow[Any]:
        """Build something from what the server sent, and count refusals."""
        guard_devices()
        with self._client.refusals.counted():
            return (yield Offload(work))


def _require_folder(path: Path) -> None:
    """Check before a long compile that its result can be written.

    Raises:
        OSError: The path is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such folder", str(path.parent))


class HandleFacts:
    """What a handle of a compiled module tells without a call."""

    _flows: ModuleFlows

    @property
    def key(self) -> str:
        """Hex of the module's key."""
        return self._flows.key

    @property
    def digest(self) -> str:
        """Hex of the digest of the graph that was sent."""
        return self._flows.digest

    @property
    def cache(self) -> Cache:
        """`.status` is "hit", "miss" or "joined"; `.reason` says why it was not a hit."""
        return self._flows.cache

    @property
    def report(self) -> Report:
        """What the compile did, including recompiles that later fetches caused."""
        return self._flows.report

"""The asynchronous handle of a compiled module: nothing is generated or sent until it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch.fx import GraphModule

from lazyfx.artifacts.python_files import PythonFile
from lazyfx.calls.async_driver import AsyncDriver
from lazyfx.calls.forking import OfOneProcess
from lazyfx.module_flows import HandleFacts, ModuleFlows
from lazyfx.shared.answers.downloads import OnProgress
from lazyfx.shared.picture import Picture
from lazyfx.shared.source.assembly import GeneratedSource
from lazyfx.trust.verifying import Provenance
from lazyfx.v1 import compiler_pb2 as pb


class AsyncRemoteModule(OfOneProcess, HandleFacts):
    """A compiled module on a server."""

    _elsewhere = "pass on its graph_module() or save_graph(), or compile it in each process"

    def __init__(self, driver: AsyncDriver, flows: ModuleFlows) -> None:
        self._run = driver.run
        self._flows = flows

    async def artifact(
        self,
        kind: str,
        request: pb.NativeRequest | None = None,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Any:
        """What this module becomes, e.g. "graph" or "pickle"; each has a method of its own too.

        Args:
            kind: "code", "source", "picture", "graph", "pickle", "package", "torchscript",
                "exported_program", "inductor" or "aot_inductor".
            request: For native artifacts, from `aot_request`. Default: this machine and its
                settings.
            timeout: Timeout of a native compile, in seconds.
            on_progress: Called with the progress of a native compile.

        Returns:
            What the method of the kind returns; bytes of a package for serving.

        Raises:
            LazyfxError: There is no such kind.
            ServiceError: The server cannot make it.
        """
        return await self._run(
            self._flows.artifact(kind, request, timeout=timeout, on_progress=on_progress)
        )

    async def save(
        self,
        path: str | Path,
        kind: str,
        request: pb.NativeRequest | None = None,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Path:
        """Write what this module becomes to a file, and return its path; see `artifact`.

        A graph is written as a serialized `lazyfx.v1.Graph`, and code as a file that runs.

        Raises:
            LazyfxError: There is no such kind, or it is not saved as a file.
            OSError: The file cannot be written; if its folder does not exist, at once.
            ServiceError: The server cannot make it.
        """
        return await self._run(
            self._flows.save(path, kind, request, timeout=timeout, on_progress=on_progress)
        )

    async def code(self) -> str:
        """The generated Python source, with the caller's own names, for people to read.

        Raises:
            DecodeError: The server sent something other than text.
            ServiceError: The server cannot render it.
        """
        return cast("str", await self.artifact("code"))

    async def picture(self) -> Picture:
        """A drawing of the graph: SVG text without scripts and external references.

        Raises:
            DecodeError: The server sent something else.
            ServiceError: The server cannot draw it.
        """
        return cast("Picture", await self.artifact("picture"))

    async def graph_module(self) -> GraphModule:
        """A new GraphModule built from graph data, with the caller's own parameters.

        No pickle is opened. Changes to the module do not affect this handle.

        Raises:
            DecodeError: The server sent something that is not a graph.
            ServiceError: The server cannot send it.
        """
        return cast("GraphModule", await self.artifact("graph"))

    @property
    def built(self) -> GraphModule | None:
        """The module that this handle calls, or None before the first call."""
        return self._flows.built

    async def callable_module(self) -> GraphModule:
        """The module that this handle calls, built on first use."""
        return await self._run(self._flows.callable_module())

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
        return cast("bytes", await self.artifact("pickle"))

    async def package(self) -> bytes:
        """The module as a torch.package archive; see `pickle` for its content.

        `PackageImporter(path).load_pickle("module", "module.pkl")` of torch.package reads it.
        """
        return cast("bytes", await self.artifact("package"))

    async def torchscript(self) -> bytes:
        """The module as a TorchScript archive for `torch.jit.load`, scripted here.

        It takes the graph's inputs positionally and returns what the model returns: a tensor, a
        tuple, a list, or a dict (for classes like a dict too).

        Raises:
            UnsupportedGraphError: The graph, or its result, cannot be expressed in TorchScript;
                names the node or the type.
        """
        return cast("bytes", await self.artifact("torchscript"))

    async def save_torchscript(self, path: str | Path) -> Path:
        """Write `torchscript()` to a file, for `torch.jit.load`, and return its path."""
        return await self.save(path, "torchscript")

    async def exported_program(self) -> bytes:
        """The module as an ExportedProgram, as torch.export.save writes it.

        It is called like the captured module, and symbolic sizes stay symbolic. The client exports
        it, with the caller's own tensors.

        Raises:
            UnsupportedGraphError: torch.export cannot express the graph; says why.
        """
        return cast("bytes", await self.artifact("exported_program"))

    async def save_exported_program(self, path: str | Path) -> Path:
        """Write `exported_program()` to a file, for `torch.export.load`, and return its path."""
        return await self.save(path, "exported_program")

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
        return self._flows.aot_request(mode, options)

    async def save_aot_inductor(
        self,
        path: str | Path,
        request: pb.NativeRequest | None = None,
        *,
        mode: str | None = None,
        options: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Path:
        """Write a package for serving, compiled by the server with AOTInductor.

        `torch._inductor.aoti_load_package(path)` returns a function that takes the graph's inputs
        positionally and returns its tensors in a list. The server compiles without the values of
        the weights; the client writes them into the file.

        Args:
            path: The file; its name should end in .pt2, as torch requires.
            request: From `aot_request`. Default: of this mode and these options.
            mode: A mode of torch.compile.
            options: Settings of Inductor.
            timeout: Timeout of the server, in seconds.
            on_progress: Called with the progress of the compile.

        Raises:
            OSError: The file cannot be written; if its folder does not exist, at once.
            PreconditionError: The server cannot build it; says why.
            UntrustedArtifactError: It is not signed with a trusted key.
            ServiceError: A subclass, by the status that the server returned.
        """
        request = request or self.aot_request(mode=mode, options=options)
        return await self.save(
            path, "aot_inductor", request, timeout=timeout, on_progress=on_progress
        )

    async def native(
        self,
        request: pb.NativeRequest,
        *,
        kept_kernels: bytes = b"",
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> bytes:
        """The native artifact of this module, as bytes that the client can load.

        Args:
            request: Where it will run and under which settings; see `native_request`.
            kept_kernels: Libraries that the caller has, which the server leaves out; see
                `GetArtifactRequest.kept_kernels`. Whoever names some adds them before loading.
            timeout: Timeout of the server, in seconds.
            on_progress: Called with the progress of the compile.

        Raises:
            PreconditionError: The server cannot build it; says why.
            UntrustedArtifactError: It is not signed with a trusted key.
            ServiceError: A subclass, by the status that the server returned.
        """
        return await self._run(
            self._flows.native(request, kept_kernels, timeout=timeout, on_progress=on_progress)
        )

    async def save_pickle(self, path: str | Path) -> Path:
        """Write `pickle()` to a file, for `pickle.load`, and return its path."""
        return await self.save(path, "pickle")

    async def save_package(self, path: str | Path) -> Path:
        """Write `package()` to a file and return its path."""
        return await self.save(path, "package")

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
        return await self._run(self._flows.python_file(name))

    async def save_code(self, path: str | Path) -> Path:
        """Write `python_file()` to a file, and return its path.

        Constants that are in no state_dict are written to a second file: `model.constants.pt` for
        `model.py`.
        """
        return await self.save(path, "code")

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
        return await self._run(self._flows.provenance(kind))

    async def source(self) -> GeneratedSource:
        """The source that the server generated, including nested graphs, checked against the graph.

        Raises:
            DecodeError: The server sent something that is not a graph.
            ArtifactError: The server's source does not match the graph.
            ServiceError: The server cannot generate it.
        """
        return cast("GeneratedSource", await self.artifact("source"))

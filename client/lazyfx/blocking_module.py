"""The blocking handle of a compiled module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch.fx import GraphModule

from lazyfx.artifacts.python_files import PythonFile
from lazyfx.calls.blocking_driver import BlockingDriver
from lazyfx.calls.forking import OfOneProcess
from lazyfx.module_flows import HandleFacts, ModuleFlows
from lazyfx.shared.answers.downloads import OnProgress
from lazyfx.shared.picture import Picture
from lazyfx.shared.source.assembly import GeneratedSource
from lazyfx.trust.verifying import Provenance
from lazyfx.v1 import compiler_pb2 as pb


class RemoteModule(OfOneProcess, HandleFacts):
    """A compiled module on a server; nothing is generated or sent until it is used."""

    _elsewhere = "pass on its graph_module() or save_graph(), or compile it in each process"

    def __init__(self, driver: BlockingDriver, flows: ModuleFlows) -> None:
        self._run = driver.run
        self._flows = flows

    def __repr__(self) -> str:
        report = self.report
        return (
            f"<RemoteModule {self.key[:12]} {self.cache.status} "
            f"nodes={report.nodes_before}->{report.nodes_after} "
            f"recompiles={report.recompiles.performed}/{report.recompiles.requested}>"
        )

    def artifact(
        self,
        kind: str,
        request: pb.NativeRequest | None = None,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Any:
        """What this module becomes, e.g. "graph"; see `AsyncRemoteModule.artifact`."""
        return self._run(
            self._flows.artifact(kind, request, timeout=timeout, on_progress=on_progress)
        )

    def save(
        self,
        path: str | Path,
        kind: str,
        request: pb.NativeRequest | None = None,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Path:
        """Write what this module becomes to a file; see `AsyncRemoteModule.save`."""
        return self._run(
            self._flows.save(path, kind, request, timeout=timeout, on_progress=on_progress)
        )

    @property
    def code(self) -> str:
        """The generated Python source, in the caller's own names. See `AsyncRemoteModule.code`."""
        return cast("str", self.artifact("code"))

    def graph_module(self) -> GraphModule:
        """A new GraphModule from graph data; see `AsyncRemoteModule.graph_module`."""
        return cast("GraphModule", self.artifact("graph"))

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """Call the module, in this thread, with the inputs that the caller's graph takes."""
        # A module that has been built needs no client: it also runs after `close`, and in a fork.
        built = self._flows.built or self._run(self._flows.callable_module())
        return built(*inputs, **kwargs)

    def picture(self) -> Picture:
        """A drawing of the graph; displays itself in a notebook."""
        return cast("Picture", self.artifact("picture"))

    def pickle(self) -> bytes:
        """The module as a pickle that loads with torch alone; see `AsyncRemoteModule.pickle`."""
        return cast("bytes", self.artifact("pickle"))

    def package(self) -> bytes:
        """The module as a torch.package archive; see `AsyncRemoteModule.package`."""
        return cast("bytes", self.artifact("package"))

    def torchscript(self) -> bytes:
        """The module as a TorchScript archive; see `AsyncRemoteModule.torchscript`."""
        return cast("bytes", self.artifact("torchscript"))

    def exported_program(self) -> bytes:
        """The module as an ExportedProgram; see `AsyncRemoteModule.exported_program`."""
        return cast("bytes", self.artifact("exported_program"))

    def native(
        self,
        request: pb.NativeRequest,
        *,
        kept_kernels: bytes = b"",
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> bytes:
        """The native artifact; see `AsyncRemoteModule.native`."""
        return self._run(
            self._flows.native(request, kept_kernels, timeout=timeout, on_progress=on_progress)
        )

    def source(self) -> GeneratedSource:
        """The generated source, checked against the graph; see `AsyncRemoteModule.source`."""
        return cast("GeneratedSource", self.artifact("source"))

    def python_file(self, name: str = "model.py") -> PythonFile:
        """A Python file that needs only torch; see `AsyncRemoteModule.python_file`."""
        return self._run(self._flows.python_file(name))

    def save_code(self, path: str | Path) -> Path:
        """Write a Python file and its constants; see `AsyncRemoteModule.save_code`."""
        return self.save(path, "code")

    def save_pickle(self, path: str | Path) -> Path:
        """Write a file for `pickle.load` that needs only torch; see `AsyncRemoteModule.pickle`."""
        return self.save(path, "pickle")

    def save_package(self, path: str | Path) -> Path:
        """Write a file for `torch.package.PackageImporter`; see `AsyncRemoteModule.package`."""
        return self.save(path, "package")

    def provenance(self, kind: str = "graph") -> Provenance:
        """The verified provenance of an artifact; see `AsyncRemoteModule.provenance`."""
        return self._run(self._flows.provenance(kind))

    def save_torchscript(self, path: str | Path) -> Path:
        """Write a file for `torch.jit.load`; see `AsyncRemoteModule.torchscript`."""
        return self.save(path, "torchscript")

    def save_exported_program(self, path: str | Path) -> Path:
        """Write a file for `torch.export.load`; see `AsyncRemoteModule.exported_program`."""
        return self.save(path, "exported_program")

    def aot_request(
        self, *, mode: str | None = None, options: Mapping[str, Any] | None = None
    ) -> pb.NativeRequest:
        """This machine and its settings; see `AsyncRemoteModule.aot_request`."""
        return self._flows.aot_request(mode, options)

    def save_aot_inductor(
        self,
        path: str | Path,
        request: pb.NativeRequest | None = None,
        *,
        mode: str | None = None,
        options: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Path:
        """Write a package for serving; see `AsyncRemoteModule.save_aot_inductor`."""
        request = request or self.aot_request(mode=mode, options=options)
        return self.save(path, "aot_inductor", request, timeout=timeout, on_progress=on_progress)

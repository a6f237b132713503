"""The kinds of artifacts on the client, one row each.

A row says what is fetched from the server and how the result is built from it. Handles use this
table to fetch artifacts, and the command line to select formats and name files. Only using a row
loads torch, so that `lazyfx --help` does not.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lazyfx.errors import LazyfxError
from lazyfx.v1 import compiler_pb2 as pb

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from lazyfx.answers.compiled_graphs import CheckedCompiledGraph
    from lazyfx.artifacts.python_files import PythonFile
    from lazyfx.capture.preparing import Prepared
    from lazyfx.shared.picture import Picture
    from lazyfx.shared.source.assembly import GeneratedSource

# torch rebuilds and scripts modules with global tables.
_building: Final = threading.Lock()


@dataclass(frozen=True)
class Received:
    """The server's data for one artifact, and what it is combined with.

    Attributes:
        prepared: What was compiled: names, tensors, calling convention.
        max_seconds: How long building a module may take.
        data: The fetched artifact; empty for artifacts built from the graph alone.
        compiled: The compiled graph, for rows that need it.
        constants: Bytes of the constants that passes created, by SHA-256.
        request: The request of a native artifact.
    """

    prepared: Prepared
    max_seconds: float
    data: bytes = b""
    compiled: CheckedCompiledGraph | None = None
    constants: Mapping[bytes, bytes] = field(default_factory=dict)
    request: pb.NativeRequest | None = None

    def module(self, *, lazy: bool) -> GraphModule:
        """A new module built from the compiled graph, around the caller's parameters.

        Args:
            lazy: Generate no code until it is called.

        Raises:
            DecodeError: It is not a graph, or takes too long.
        """
        from torch.fx import GraphModule

        from lazyfx.artifacts.rebuilding import rebuild
        from lazyfx.shared.torch_lazy_class import LazyGraphModule

        assert self.compiled is not None
        module_class = LazyGraphModule if lazy else GraphModule
        with _building:
            return rebuild(
                self.compiled, self.prepared, self.constants, module_class, self.max_seconds
            )


@dataclass(frozen=True)
class Recipe:
    """How an artifact, or its file, is built.

    Attributes:
        make: Builds it from the received data. For a file, it also takes the path and writes the
            file.
        fetch: The server's artifact that it needs; unspecified if it needs only the graph.
        graph: Whether it needs the compiled graph.
        generates: Whether it generates Python code of every graph in the module.
    """

    make: Callable[..., Any]
    fetch: pb.ArtifactKind.ValueType = pb.ARTIFACT_KIND_UNSPECIFIED
    graph: bool = True
    generates: bool = False


@dataclass(frozen=True)
class ArtifactKind:
    """One kind of artifact.

    Attributes:
        name: Its name in the service, in provenance and on the command line.
        value: How the artifact is built.
        file: How its file is built; None if the file contains the artifact unchanged.
        suffix: Suffix of its files; empty if there are none.
        holds_values: Whether it contains the values of parameters.
        is_text: Whether it can be printed.
        made_here: Whether this client builds it from the graph; the server has signed the graph.
        native: Whether it also depends on a machine and its settings.
    """

    name: str
    value: Recipe
    file: Recipe | None = None
    suffix: str = ""
    holds_values: bool = False
    is_text: bool = False
    made_here: bool = False
    native: bool = False

    @property
    def number(self) -> pb.ArtifactKind.ValueType:
        """Its number in the service."""
        return pb.ArtifactKind.Value(f"ARTIFACT_KIND_{self.name.upper()}")

    @property
    def to_file(self) -> Recipe:
        """How its file is built.

        Raises:
            LazyfxError: This kind has no files.
        """
        if not self.suffix:
            raise LazyfxError(
                f"{self.name!r} cannot be saved as a file; 'pickle' and 'code' can, for example"
            )
        return self.file or replace(self.value, make=partial(_write_made, self.value.make))


def _write_made(make: Callable[[Received], bytes | str], received: Received, path: Path) -> None:
    made = make(received)
    path.write_bytes(made.encode("utf-8") if isinstance(made, str) else made)


def find_kind(name: str) -> ArtifactKind:
    """Find a kind of artifact by name.

    Raises:
        LazyfxError: There is no such kind.
    """
    kind = ARTIFACT_KINDS.get(name.lower())
    if kind is None:
        raise LazyfxError(f"{name!r} is not a kind of artifact, e.g. 'graph' or 'code'")
    return kind


def _code(received: Received) -> str:
    from lazyfx.shared.answers.responses import read_text
    from lazyfx.shared.printable import printable

    text = read_text(received.data)
    return printable(text, len(text))


def _source(received: Received) -> GeneratedSource:
    return _source_and_module(received)[0]


def _source_and_module(received: Received) -> tuple[GeneratedSource, GraphModule]:
    from lazyfx.artifacts.rebuilding import checked_source
    from lazyfx.shared.answers.responses import read_message

    module = received.module(lazy=True)
    return checked_source(read_message(pb.GeneratedSource, received.data), module), module


def make_python_file(received: Received, path: Path) -> PythonFile:
    """A Python file for a compiled graph, which loads its constants from the same folder."""
    from lazyfx.artifacts.python_files import python_file

    source, module = _source_and_module(received)
    return python_file(module, source, received.prepared.captured.module, path.name)


def _write_python_file(received: Received, path: Path) -> None:
    make_python_file(received, path).save(path)


def _picture(received: Received) -> Picture:
    from lazyfx.answers.pictures import sanitize_picture
    from lazyfx.shared.picture import Picture

    return Picture(sanitize_picture(received.data))


def _graph(received: Received) -> GraphModule:
    module = received.module(lazy=False)
    received.prepared.captured.apply_input_checks(module)
    return module


def _write_graph(received: Received, path: Path) -> None:
    from lazyfx.shared import wire

    message = wire.encode(_graph(received)).message()
    path.write_bytes(message.SerializeToString(deterministic=True))


def _pickle(received: Received) -> bytes:
    from lazyfx.shared.formats.pickling import pickle_module

    return pickle_module(received.module(lazy=True))


def _package(received: Received) -> bytes:
    from lazyfx.shared.formats.pickling import package_module

    return package_module(received.module(lazy=True))


def _torchscript(received: Received) -> bytes:
    from lazyfx.shared.formats.torchscript import eager_copy, script_module

    module = received.module(lazy=True)
    with _building:
        return script_module(eager_copy(module))


def _exported_program(received: Received) -> bytes:
    from lazyfx.shared.formats.exported_program import export_module

    return export_module(received.module(lazy=False))


def _native(received: Received) -> bytes:
    return received.data


def _aot_inductor(received: Received) -> bytes:
    buffer = io.BytesIO()
    _write_aot_inductor(received, buffer)
    return buffer.getvalue()


def _write_aot_inductor(received: Received, file: Path | io.BytesIO) -> None:
    from lazyfx.artifacts.aot_packages import write_package
    from lazyfx.artifacts.rebuilding import rebuild_canonical
    from lazyfx.shared.native.graph_tensors import own_tensors
    from lazyfx.shared.native.native_answers import read_artifact
    from lazyfx.shared.native.text_tokens import texts_of

    assert received.compiled is not None
    assert received.request is not None
    package = read_artifact(pb.AotPackage, received.data, received.request)
    with _building:
        canonical = rebuild_canonical(received.compiled, received.prepared, received.constants)
    texts = texts_of(received.prepared.encoded.body)
    write_package(package, own_tensors(canonical), file, texts)


_made_here: Final = partial(ArtifactKind, holds_values=True, made_here=True)

PYTHON_FILE: Final = Recipe(make_python_file, pb.ARTIFACT_KIND_SOURCE)
"""How a Python file is made that holds a module's code; `save` writes it with its constants."""

ARTIFACT_KINDS: Final[Mapping[str, ArtifactKind]] = {
    kind.name: kind
    for kind in (
        ArtifactKind(
            "code",
            Recipe(_code, pb.ARTIFACT_KIND_CODE, graph=False),
            Recipe(_write_python_file, pb.ARTIFACT_KIND_SOURCE),
            suffix=".py",
            is_text=True,
        ),
        ArtifactKind(
            "graph",
            Recipe(_graph, generates=True),
            Recipe(_write_graph, generates=True),
            suffix=".graph",
        ),
        _made_here("pickle", Recipe(_pickle), suffix=".pkl"),
        _made_here("package", Recipe(_package), suffix=".package.pt"),
        ArtifactKind(
            "picture",
            Recipe(_picture, pb.ARTIFACT_KIND_PICTURE, graph=False),
            suffix=".svg",
            is_text=True,
        ),
        _made_here("torchscript", Recipe(_torchscript, generates=True), suffix=".ts"),
        _made_here(
            "exported_program", Recipe(_exported_program, generates=True), suffix=".exported.pt2"
        ),
        ArtifactKind(
            "aot_inductor",
            Recipe(_aot_inductor, pb.ARTIFACT_KIND_AOT_INDUCTOR),
            Recipe(_write_aot_inductor, pb.ARTIFACT_KIND_AOT_INDUCTOR),
            suffix=".aot.pt2",
            holds_values=True,
            native=True,
        ),
        ArtifactKind("source", Recipe(_source, pb.ARTIFACT_KIND_SOURCE)),
        ArtifactKind(
            "inductor", Recipe(_native, pb.ARTIFACT_KIND_INDUCTOR, graph=False), native=True
        ),
    )
}

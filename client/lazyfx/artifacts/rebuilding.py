"""Rebuilds a compiled graph as a GraphModule, with the caller's names and tensors."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.fx import Graph, GraphModule

from lazyfx.answers.compiled_graphs import CheckedCompiledGraph
from lazyfx.capture.preparing import Prepared
from lazyfx.errors import ArtifactError, DecodeError, LazyfxError, ProtocolError
from lazyfx.shared import wire
from lazyfx.shared.answers.answer_bounds import DEFAULT_BOUNDS
from lazyfx.shared.printable import printable
from lazyfx.shared.source import SourceMismatchError, check_generated
from lazyfx.shared.source.assembly import GeneratedSource
from lazyfx.shared.torch_lazy_class import LazyGraphModule
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

# From this many nodes on, garbage collection takes longer than creating the nodes.
_MANY_NODES = 20_000


def rebuild(
    compiled: CheckedCompiledGraph,
    prepared: Prepared,
    constants: Mapping[bytes, bytes],
    module_class: wire.ModuleClass,
    max_seconds: float = DEFAULT_BOUNDS.max_seconds,
) -> GraphModule:
    """Build a module from graph data, without any pickle.

    The root gets the caller's calling convention before it is created, so that its code is
    generated only once, or with a lazy class not at all.

    Args:
        compiled: The checked graph from the server.
        prepared: The request: names, tensors, calling convention.
        constants: Bytes of the constants that passes created, by SHA-256.
        module_class: Class of the module and its nested modules.
        max_seconds: Time limit.

    Raises:
        DecodeError: It is not a graph, or takes too long.
        ArtifactError: It names a constant that is not there.
    """
    with _as_decode_errors(), _gc_paused(compiled):
        return wire.decode(
            compiled.body,
            wire.restore_names(compiled.message, prepared.encoded.presentation),
            bind=_binder(compiled, prepared, constants),
            module_class=_with_deadline(max_seconds, module_class),
            on_root=prepared.captured.apply_codegen,
        )


def rebuild_canonical(
    compiled: CheckedCompiledGraph, prepared: Prepared, constants: Mapping[bytes, bytes]
) -> GraphModule:
    """Build it with canonical names, like a server, to get the paths of its tensors.

    Raises:
        DecodeError: It is not a graph.
        ArtifactError: It names a constant that is not there.
    """
    with _as_decode_errors():
        return wire.decode(
            compiled.body,
            bind=_binder(compiled, prepared, constants),
            module_class=LazyGraphModule,
            metadata="none",
        )


@contextmanager
def _as_decode_errors() -> Iterator[None]:
    """Turn any other error into a DecodeError: the data is at fault.

    torch raises errors of every kind for invalid graphs.
    """
    try:
        yield
    except LazyfxError:
        raise
    except Exception as error:  # constructors of torch raise errors of every kind
        raise DecodeError(
            f"cannot build a module from it: {type(error).__name__}: {printable(str(error), 500)}"
        ) from error


@contextmanager
def _gc_paused(compiled: CheckedCompiledGraph) -> Iterator[None]:
    """Pause garbage collection while very many nodes are created: each run visits them all."""
    nodes = sum(len(graph.calls) for graph in compiled.body.message.graphs)
    if nodes < _MANY_NODES or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _with_deadline(seconds: float, module_class: wire.ModuleClass) -> wire.ModuleClass:
    """A module class that refuses new instances once the time is over."""
    end = time.monotonic() + seconds

    def make(root: torch.nn.Module, graph: Graph, name: str) -> GraphModule:
        if time.monotonic() > end:
            raise ProtocolError(f"building a module takes longer than {seconds} s (max_seconds)")
        return module_class(root, graph, name)

    return make


def checked_source(message: pb.GeneratedSource, module: GraphModule) -> GeneratedSource:
    """Check source that a server generated against its graphs.

    Args:
        message: The server's source.
        module: The module that it belongs to, built from graph data.

    Raises:
        ArtifactError: It does not match the graphs, or belongs to missing graphs.
    """
    try:
        source = _checked(message, module)
        children = dict(_checked_children(message, module))
    except SourceMismatchError as error:
        raise ArtifactError(
            f"the server's source does not match its graph and was not used: "
            f"{printable(str(error), 1000)}"
        ) from error
    return GeneratedSource(source.code, source.import_block, children)


def _checked_children(
    message: pb.GeneratedSource, module: GraphModule
) -> Iterator[tuple[str, GeneratedSource]]:
    parts = {path: part for path, part in module.named_modules() if isinstance(part, GraphModule)}
    for child in message.children:
        part = parts.pop(child.path, None) if child.path else None
        if part is None or child.source.children:
            raise SourceMismatchError(f"there is no nested graph {child.path[:200]!r}")
        yield child.path, _checked(child.source, part)


def _checked(message: pb.GeneratedSource, module: GraphModule) -> GeneratedSource:
    imports = check_generated(message.code, message.import_block, module.graph)
    return GeneratedSource(message.code, imports)


def _binder(
    compiled: CheckedCompiledGraph, prepared: Prepared, constants: Mapping[bytes, bytes]
) -> Callable[[int, int, graph_pb2.Attribute], torch.Tensor | None]:
    """A function that returns tensors of the compiled graph: the caller's, or new constants."""

    def bind(graph: int, attribute: int, description: graph_pb2.Attribute) -> torch.Tensor | None:
        origin = compiled.message.provenance[graph]
        source = origin.attributes[attribute]
        if source and origin.source_graph:
            tensor = prepared.encoded.attributes[origin.source_graph - 1][source - 1]
            if isinstance(tensor, torch.Tensor):
                return tensor
        data = constants.get(description.tensor.content.sha256)
        if data is None:
            raise ArtifactError("the compiled graph refers to a constant that was not announced")
        return wire.tensor_from_bytes(
            compiled.body.message.tensors[description.tensor.tensor], data
        )

    return bind

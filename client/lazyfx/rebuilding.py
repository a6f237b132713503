"""A compiled graph becomes a GraphModule again, in its caller's names and around their tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.fx import GraphModule

from lazyfx import wire
from lazyfx.errors import ArtifactError
from lazyfx.lazy_class import LazyGraphModule
from lazyfx.preparing import Prepared
from lazyfx.v1 import graph_pb2


def rebuild(
    compiled: graph_pb2.CompiledGraph,
    prepared: Prepared,
    constants: Mapping[bytes, bytes],
    module_class: type[GraphModule],
) -> GraphModule:
    """Build a module from graph data. No pickle is opened.

    The root gets the caller's calling convention before it is made, so that code is
    generated for it once, or with a lazy class not at all.

    Args:
        compiled: What the server made.
        prepared: What was asked for: names, tensors, calling convention.
        constants: Bytes of the constants that passes made, by SHA-256.
        module_class: Class of the module, and of those inside it.

    Raises:
        DecodeError: It is not a graph.
        ArtifactError: It names a constant that is not there.
    """
    body = graph_pb2.GraphBody.FromString(compiled.graph.body)
    return wire.decode(
        body,
        wire.present(compiled, prepared.encoded.presentation),
        bind=_binder(compiled, body, prepared, constants),
        module_class=module_class,
        on_root=prepared.captured.adopt_codegen,
    )


def rebuild_canonical(
    compiled: graph_pb2.CompiledGraph, prepared: Prepared, constants: Mapping[bytes, bytes]
) -> GraphModule:
    """The same in canonical names, as a server builds it, for its tensors' paths.

    Raises:
        DecodeError: It is not a graph.
        ArtifactError: It names a constant that is not there.
    """
    body = graph_pb2.GraphBody.FromString(compiled.graph.body)
    bind = _binder(compiled, body, prepared, constants)
    return wire.decode(body, bind=bind, module_class=LazyGraphModule, metadata="none")


def _binder(
    compiled: graph_pb2.CompiledGraph,
    body: graph_pb2.GraphBody,
    prepared: Prepared,
    constants: Mapping[bytes, bytes],
) -> Callable[[int, int, graph_pb2.Attribute], torch.Tensor | None]:
    """What gives each tensor of the compiled graph: the caller's own, or a new constant."""

    def bind(graph: int, attribute: int, description: graph_pb2.Attribute) -> torch.Tensor | None:
        origin = compiled.provenance[graph]
        source = origin.attributes[attribute]
        if source and origin.source_graph:
            tensor = prepared.encoded.attributes[origin.source_graph - 1][source - 1]
            if isinstance(tensor, torch.Tensor):
                return tensor
        data = constants.get(description.tensor.content.sha256)
        if data is None:
            raise ArtifactError("the compiled graph names a constant that it did not announce")
        return wire.tensor_from_bytes(body.tensors[description.tensor.tensor], data)

    return bind

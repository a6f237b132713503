"""torch.fx graph -> bytes and digest."""

# ruff: noqa: SLF001 - the calling convention of an exported graph has no public spelling

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule

from lazyfx.errors import LazyfxError
from lazyfx.shared.format_version import FORMAT_VERSION
from lazyfx.shared.wire import calling_convention
from lazyfx.shared.wire.writing.attributes import AttributeWriter, Children, Storages
from lazyfx.shared.wire.writing.graph_writer import GraphWriter
from lazyfx.shared.wire.writing.message_tables import Tables
from lazyfx.v1 import graph_pb2 as pb


@dataclass(frozen=True, slots=True)
class EncodedGraph:
    """An encoded graph, and the caller's objects that it refers to.

    Attributes:
        body: Canonical GraphBody bytes: what the graph computes.
        presentation: Names and device indices.
        digest: SHA-256 of `body`, 32 bytes.
        attributes: For each graph and each of its attributes: the caller's tensor, module,
            GraphModule or literal.
        nodes: Number of nodes of the root graph.
    """

    body: bytes
    presentation: pb.Presentation
    digest: bytes
    attributes: tuple[tuple[object, ...], ...]
    nodes: int

    def message(self) -> pb.Graph:
        """The graph as a message of the service."""
        return pb.Graph(
            format_version=FORMAT_VERSION, body=self.body, presentation=self.presentation
        )


def encode(module: GraphModule) -> EncodedGraph:
    """Encode a graph in the wire format.

    Tensors that the graph reads by get_attr are described, not sent: parameters and registered
    buffers by their metadata, other tensors (lifted constants) also by the digest of their bytes.
    Metadata of nodes comes from `meta["val"]`, `meta["example_value"]` or the message that the
    graph was decoded from, in this order.

    Args:
        module: A graph from any torch.fx tracer; it is not modified.

    Raises:
        UnsupportedGraphError: The graph contains something that the format cannot represent; the
            error names the node and the remedy.
    """
    calling_convention.check_root(module)
    # Skipping torch's check for overrides halves the time to read a tensor's metadata; classes with
    # overrides are refused.
    with torch._C.DisableTorchFunctionSubclass():
        return _encode(module)


def _encode(module: GraphModule) -> EncodedGraph:
    tables = Tables()
    storages, children = Storages(), Children(module)
    presentation = pb.Presentation()
    objects: list[tuple[object, ...]] = []
    calls: dict[tuple[Any, ...], int] = {}
    # The list grows during the walk: children are numbered when first reached.
    for index, graph_module in enumerate(children.modules):
        columns = tables.body.graphs.add()
        attributes = AttributeWriter(graph_module, index, columns, tables, storages, children)
        writer = GraphWriter(graph_module, columns, attributes, tables, calls)
        names_of_graph = presentation.graphs.add()
        writer.write(names_of_graph)
        names_of_graph.attribute_paths.extend(attributes.paths)
        objects.append(tuple(attributes.objects))
    presentation.device_indices.extend(tables.device_indices)
    presentation.process_groups.extend(tables.groups.names)
    _write_signature(module, presentation)
    body = tables.body.SerializeToString(deterministic=True)
    return EncodedGraph(
        body=body,
        presentation=presentation,
        digest=hashlib.sha256(body).digest(),
        attributes=tuple(objects),
        nodes=len(tables.body.graphs[0].calls),
    )


def digest(module: GraphModule) -> str:
    """Hex SHA-256 of what a graph computes, regardless of names, kwarg order and source lines.

    Raises:
        UnsupportedGraphError: As `encode` does.
        LazyfxError: It is not a GraphModule.
    """
    if not isinstance(module, GraphModule):
        raise LazyfxError(
            f"digest takes a GraphModule, not an object of type {type(module).__name__}; capture "
            "one: torch.export.export(model, inputs).module(), or torch.fx.symbolic_trace(model)"
        )
    return encode(module).digest.hex()


def _write_signature(module: GraphModule, presentation: pb.Presentation) -> None:
    codegen = module.graph._codegen
    if not isinstance(codegen, torch.fx.graph._PyTreeCodeGen):
        return
    signature = presentation.signature
    argument_names = [name for name in codegen.pytree_info.orig_args if name != "self"]
    signature.argument_names.extend(argument_names)
    spec = codegen.pytree_info.in_spec
    if spec.type is tuple and spec.num_children == 2:
        signature.positional_count = spec.child(0).num_children

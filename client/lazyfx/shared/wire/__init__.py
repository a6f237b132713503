"""The wire format: torch.fx graphs as bytes, and back."""

from __future__ import annotations

from lazyfx.shared.format_version import FORMAT_VERSION
from lazyfx.shared.wire.argument_names import apply_signature
from lazyfx.shared.wire.canonical.body import check_canonical, read_canonical
from lazyfx.shared.wire.origins import Origins
from lazyfx.shared.wire.presentation import (
    canonical_node,
    graph_at,
    node_name,
    provenance,
    restore_names,
    tensor_places,
)
from lazyfx.shared.wire.reading.decode import Metadata, ModuleClass, decode
from lazyfx.shared.wire.values.descriptions import (
    META_KEY,
    LazyValue,
    describe,
    fake_value,
    materialize,
)
from lazyfx.shared.wire.values.tensors import content_digest, tensor_bytes, tensor_from_bytes
from lazyfx.shared.wire.writing.encode import EncodedGraph, digest, encode

__all__ = [
    "FORMAT_VERSION",
    "META_KEY",
    "EncodedGraph",
    "LazyValue",
    "Metadata",
    "ModuleClass",
    "Origins",
    "apply_signature",
    "canonical_node",
    "check_canonical",
    "content_digest",
    "decode",
    "describe",
    "digest",
    "encode",
    "fake_value",
    "graph_at",
    "materialize",
    "node_name",
    "provenance",
    "read_canonical",
    "restore_names",
    "tensor_bytes",
    "tensor_from_bytes",
    "tensor_places",
]

"""The wire format: torch.fx graphs as bytes, and back."""

from __future__ import annotations

from lazyfx.envelope import FORMAT_VERSION
from lazyfx.wire.canonical import check_canonical, read_canonical
from lazyfx.wire.decode import Metadata, ModuleClass, decode
from lazyfx.wire.encode import EncodedGraph, digest, encode
from lazyfx.wire.origins import Origins
from lazyfx.wire.presentation import (
    canonical_node,
    graph_at,
    node_name,
    provenance,
    restore_names,
    tensor_places,
)
from lazyfx.wire.signature import apply_signature
from lazyfx.wire.tensors import content_digest, tensor_bytes, tensor_from_bytes
from lazyfx.wire.values import META_KEY, LazyValue, describe, fake_value, materialize

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

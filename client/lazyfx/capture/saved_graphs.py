"""Graphs in files: computation and names, without any values."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError as ProtobufError
from torch.fx import GraphModule

from lazyfx.capture.capturing import Compilable, ExampleInputs, GraphCapturer
from lazyfx.errors import DecodeError
from lazyfx.shared import wire
from lazyfx.shared.format_version import check_envelope
from lazyfx.shared.torch_lazy_class import LazyGraphModule
from lazyfx.v1 import compiler_pb2
from lazyfx.v1 import graph_pb2 as pb

# A recorded compile starts with its graph, a message; a graph starts with its version, a number.
_RECORDING: Final = b"\x0a"


@dataclass(frozen=True, slots=True)
class SavedGraph:
    """A graph from a file.

    Attributes:
        body: Canonical GraphBody bytes: what the graph computes.
        presentation: Names and device indices.
    """

    body: bytes = field(repr=False)
    presentation: pb.Presentation = field(repr=False)

    def __repr__(self) -> str:
        """A one-line summary, without its bytes."""
        graphs = pb.GraphBody.FromString(self.body).graphs
        nodes, tensors = (
            sum(len(graph.calls) for graph in graphs),
            sum(row.HasField("tensor") for graph in graphs for row in graph.attributes),
        )
        return (
            f"<SavedGraph {self.digest[:12]}: {nodes} nodes, {tensors} tensors without values; "
            ".graph_module() rebuilds it>"
        )

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what the graph computes; see `lazyfx.digest`."""
        return hashlib.sha256(self.body).hexdigest()

    def graph_module(self) -> GraphModule:
        """The graph, with tensors on the meta device in place of its parameters.

        Its code is generated on first use.

        Raises:
            DecodeError: A target or an option is unknown to this torch.
        """
        return wire.decode(self.body, self.presentation, module_class=LazyGraphModule)


def save_graph(
    what: Compilable, path: str | Path, example_inputs: ExampleInputs = None
) -> SavedGraph:
    """Write a graph to a file: kilobytes, no parameter values, no code.

    The file holds a `lazyfx.v1.Graph` message. Later versions of lazyfx read it and find the
    same digest; `lazyfx.explain` and `lazyfx explain` compare two of them.

    Raises:
        UnsupportedGraphError: The format does not support the graph; names the node.
    """
    encoded = wire.encode(GraphCapturer().capture(what, example_inputs).module)
    Path(path).write_bytes(encoded.message().SerializeToString(deterministic=True))
    return SavedGraph(encoded.body, encoded.presentation)


def load_graph(path: str | Path) -> SavedGraph:
    """Read a graph that `save_graph` or a job with LAZYFX_RECORD wrote. Runs no code in it.

    Raises:
        DecodeError: It is not such a file, was written by a version of lazyfx whose graphs
            this one cannot read, or is damaged; the error names the field.
        OSError: It cannot be read.
    """
    message = pb.Graph()
    data = Path(path).read_bytes()
    if not data:
        raise DecodeError(f"{path} is empty; lazyfx.save_graph writes a graph to a file")
    try:
        if data.startswith(_RECORDING):
            message = compiler_pb2.RecordedCompile.FromString(data).graph
        else:
            message.ParseFromString(data)
    except (ProtobufError, UnicodeDecodeError):
        raise DecodeError(_not_written_here(path)) from None
    if not message.format_version and not message.body:
        raise DecodeError(_not_written_here(path))
    check_envelope(message)
    # Detect names that do not fit the body here, not at their first use.
    saved = SavedGraph(message.body, message.presentation)
    saved.graph_module()
    return saved


def _not_written_here(path: str | Path) -> str:
    more = "; torch.export.load reads it" if str(path).endswith(".pt2") else ""
    return f"{path} is not a lazyfx graph file{more}"

"""Graphs in files: what they compute and what their parts are called, without any values."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError as ProtobufError
from torch.fx import GraphModule

from lazyfx import wire
from lazyfx.capture import Captures, Compilable, ExampleInputs
from lazyfx.envelope import check_envelope
from lazyfx.errors import DecodeError
from lazyfx.lazy_class import LazyGraphModule
from lazyfx.v1 import graph_pb2 as pb


@dataclass(frozen=True, slots=True)
class SavedGraph:
    """A graph from a file.

    Attributes:
        body: Canonical GraphBody bytes: what the graph computes.
        presentation: Names and device indices.
    """

    body: bytes
    presentation: pb.Presentation

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what the graph computes; see `lazyfx.digest`."""
        return hashlib.sha256(self.body).hexdigest()

    def graph_module(self) -> GraphModule:
        """The graph, with tensors on the meta device in place of its parameters.

        Its code is generated when it is first asked for.

        Raises:
            DecodeError: A target or an option is not known to this torch.
        """
        return wire.decode(self.body, self.presentation, module_class=LazyGraphModule)


def save_graph(
    what: Compilable, path: str | Path, example_inputs: ExampleInputs = None
) -> SavedGraph:
    """Write a graph to a file: kilobytes, no parameter values, no code.

    The file holds a `lazyfx.v1.Graph` message. Later versions of lazyfx read it and find the
    same digest; `lazyfx.explain` and `lazyfx explain` compare two of them.

    Raises:
        UnsupportedGraphError: The graph has no place in the format; names the node.
    """
    encoded = wire.encode(Captures().capture(what, example_inputs).module)
    Path(path).write_bytes(encoded.message().SerializeToString(deterministic=True))
    return SavedGraph(encoded.body, encoded.presentation)


def load_graph(path: str | Path) -> SavedGraph:
    """Read a graph that `save_graph` wrote. Nothing in the file is run.

    Raises:
        DecodeError: It is not such a file, was written by a version of lazyfx whose graphs
            this one cannot read, or is damaged; the error names the field.
        OSError: It cannot be read.
    """
    message = pb.Graph()
    try:
        message.ParseFromString(Path(path).read_bytes())
    except (ProtobufError, UnicodeDecodeError):
        raise DecodeError(f"{path} is not a graph that lazyfx wrote") from None
    check_envelope(message)
    # Names that do not fit the body are found out here, not where they are used.
    saved = SavedGraph(message.body, message.presentation)
    saved.graph_module()
    return saved

"""Records the graphs of a job, so that a server can be warmed without the job."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError as ProtobufError
from torch.fx import GraphModule

from lazyfx.backend.remote import GraphRequest
from lazyfx.capture import remembering
from lazyfx.errors import DecodeError
from lazyfx.shared import wire
from lazyfx.shared.format_version import check_envelope
from lazyfx.shared.pass_specs import PassSpec, messages, spec_of_message
from lazyfx.shared.torch_lazy_class import LazyGraphModule
from lazyfx.v1 import compiler_pb2 as pb

SUFFIX: Final = ".lazyfx"


@dataclass(frozen=True, slots=True)
class Recorded:
    """One graph from a recording.

    Attributes:
        graph: The graph, without any values.
        passes: The passes that run first.
        native: What its artifact depends on; None if the job ran the rebuilt graph.
    """

    graph: GraphModule
    passes: tuple[PassSpec, ...]
    native: pb.NativeRequest | None


def record(graph_request: GraphRequest, folder: Path) -> Path:
    """Atomically write a request to a folder; equal ones share a file.

    Raises:
        UnsupportedGraphError: The format does not support the graph; names the node.
        OSError: The file cannot be written.
    """
    encoded = remembering.encode(graph_request.graph)
    recorded = pb.RecordedCompile(
        graph=encoded.message(),
        passes=messages(graph_request.options.passes),
        native=graph_request.native,
    )
    data = recorded.SerializeToString(deterministic=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(data).hexdigest()[:32]}{SUFFIX}"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}.part")
        temporary.write_bytes(data)
        temporary.replace(path)
    return path


def read_recording(path: Path) -> Iterator[Recorded]:
    """Read a file, or every recorded graph of a folder. Nothing in them is run.

    Raises:
        DecodeError: A file is not a recording, or is damaged; names it.
        OSError: It cannot be read.
    """
    paths = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    for each in paths:
        try:
            found = pb.RecordedCompile.FromString(each.read_bytes())
        except ProtobufError:
            raise DecodeError(f"{each} is not a recorded graph") from None
        check_envelope(found.graph)
        graph = wire.decode(
            found.graph.body, found.graph.presentation, module_class=LazyGraphModule
        )
        passes = tuple(map(spec_of_message, found.passes))
        yield Recorded(graph, passes, found.native if found.HasField("native") else None)

"""Assembles an artifact from its stream; stops at the first part that is out of order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, TypeAlias

from lazyfx.errors import ArtifactError, ProtocolError
from lazyfx.shared.answers.answer_bounds import AnswerBounds
from lazyfx.shared.printable import one_line
from lazyfx.v1 import compiler_pb2 as pb

OnProgress: TypeAlias = "Callable[[pb.ArtifactProgress], None]"

_TEXTS: Final = frozenset(
    {pb.ARTIFACT_KIND_CODE, pb.ARTIFACT_KIND_SOURCE, pb.ARTIFACT_KIND_PICTURE}
)
# Progress reports in one download; a server sends a few per second, for ten minutes at most.
_MAX_REPORTS: Final = 20_000
_MAX_STAGE: Final = 100


class Download:
    """Assembles one artifact's stream, in as many attempts as needed.

    Memory grows with the received bytes, never with the announced size.

    Args:
        request: The request.
        bounds: Bounds on its size.
        on_progress: Called with the progress of a native compile.
    """

    def __init__(
        self,
        request: pb.GetArtifactRequest,
        bounds: AnswerBounds,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._request = request
        self._most = _bound(request, bounds)
        self._on_progress = on_progress
        self._reports = 0
        self._data = bytearray()
        self._size: int | None = None
        self._trailer: pb.ArtifactTrailer | None = None

    @property
    def received(self) -> int:
        """The number of received bytes."""
        return len(self._data)

    def begin(self) -> None:
        """Begin another attempt, which resumes where the last one broke off."""
        self._size = self._trailer = None

    def take(self, part: pb.GetArtifactResponse) -> None:
        """Add the next part.

        Raises:
            ArtifactError: A chunk is not the expected one.
            ProtocolError: It is out of order, or more than was announced or allowed.
        """
        kind = part.WhichOneof("part")
        if self._trailer is not None:
            raise ProtocolError(f"the server sent {kind} after the end of the artifact")
        if kind == "progress":
            self._take_progress(part.progress)
        elif kind == "header" and self._size is None:
            self._take_header(part.header)
        elif kind == "chunk":
            self._take_chunk(part.chunk)
        elif kind == "trailer" and self._size is not None:
            self._trailer = part.trailer
        else:
            raise ProtocolError(
                f"the server sent {kind}, which does not belong in an artifact stream"
            )

    def finish(self) -> tuple[bytes, pb.ArtifactTrailer]:
        """The complete artifact, and its trailer.

        Raises:
            ArtifactError: It is shorter than announced, has no trailer, or does not match its
                digest.
        """
        if self._trailer is None:
            raise ArtifactError("the artifact stream ended without a trailer")
        digest = self._trailer.digest.sha256
        if self._size != len(self._data) or hashlib.sha256(self._data).digest() != digest:
            raise ArtifactError(
                f"the {pb.ArtifactKind.Name(self._request.kind)} that arrived does not match the "
                "size or digest that the server announced; try again"
            )
        if self._request.HasField("constant") and self._request.constant.sha256 != digest:
            raise ArtifactError("the constant that arrived is not the one that was requested")
        return bytes(self._data), self._trailer

    def _take_progress(self, progress: pb.ArtifactProgress) -> None:
        self._reports += 1
        if self._reports > _MAX_REPORTS:
            raise ProtocolError(f"more than {_MAX_REPORTS} progress reports")
        if self._size is not None:
            raise ProtocolError("a progress report after the artifact began to arrive")
        if self._on_progress is not None:
            progress.stage = one_line(progress.stage, _MAX_STAGE)
            self._on_progress(progress)

    def _take_header(self, header: pb.ArtifactHeader) -> None:
        if header.kind != self._request.kind:
            raise ProtocolError("is not the kind that was requested", field="header.kind")
        if not len(self._data) <= header.size_bytes <= self._most:
            raise ProtocolError(
                f"announces {header.size_bytes} bytes; at most {self._most} are allowed",
                field="header",
            )
        self._size = header.size_bytes

    def _take_chunk(self, chunk: pb.ArtifactChunk) -> None:
        if self._size is None:
            raise ProtocolError("a chunk before the header of the artifact")
        if chunk.offset != len(self._data):
            raise ArtifactError(
                f"received a chunk at offset {chunk.offset}, expected {len(self._data)}"
            )
        if len(self._data) + len(chunk.data) > self._size:
            raise ProtocolError(f"received more than the {self._size} bytes that were announced")
        # One empty chunk may represent an empty artifact; a stream of them might never end.
        if not chunk.data and self._size:
            raise ProtocolError("the server sent an empty chunk")
        self._data += chunk.data


def _bound(request: pb.GetArtifactRequest, bounds: AnswerBounds) -> int:
    if request.kind in _TEXTS:
        return bounds.max_text_bytes
    if request.kind == pb.ARTIFACT_KIND_GRAPH:
        return bounds.max_graph_bytes
    if request.kind == pb.ARTIFACT_KIND_CONSTANT:
        return min(bounds.max_constant_bytes, request.constant.size_bytes)
    return bounds.max_artifact_bytes

"""The calls to an upstream server, free of gRPC, and how they fail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final, Protocol

from lazyfx.errors import TimedOutError
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.telemetry import UpstreamOutcome


class UpstreamFailureError(Exception):
    """The upstream cannot serve a request; this server does it itself.

    Attributes:
        outcome: Why, for metrics.
        pause: Seconds for which it need not be asked again, whatever its health; 0 to go on.
        not_found: Whether it answered that it does not have what was asked for.
        is_passing: Whether asking again may help soon.
    """

    def __init__(
        self,
        reason: str,
        outcome: UpstreamOutcome,
        pause: float = 0.0,
        *,
        not_found: bool = False,
        is_passing: bool = False,
    ) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.pause = pause
        self.not_found = not_found
        self.is_passing = is_passing or outcome == "unreachable"


NOT_IN_USE: Final = UpstreamFailureError("it is not in use", "unreachable")


class DeadlinePassedError(TimedOutError):
    """The deadline of the caller that is being served passed before the upstream answered."""


class UpstreamCalls(Protocol):
    """The calls. Each is made under the identity of the caller that is being served.

    Each raises a `lazyfx.errors.ServiceError` for the status that the upstream returns, or a
    `lazyfx.errors.ProtocolError` if its answer cannot be parsed.

    Attributes:
        address: Where it listens.
        forwards_callers: Whether the identity is the caller's own, so that a refusal of it is
            meant for the caller.
    """

    address: str
    forwards_callers: bool

    async def compile(self, request: pb.CompileRequest) -> pb.CompileResponse:
        """Compile one graph."""

    def artifact(self, request: pb.GetArtifactRequest) -> AsyncIterator[pb.GetArtifactResponse]:
        """The parts of an artifact."""

    async def find_missing(
        self, digests: Sequence[graph_pb2.Digest]
    ) -> pb.FindMissingBlobsResponse:
        """Which blobs it lacks."""

    async def upload(self, chunks: Iterable[pb.UploadBlobsRequest]) -> None:
        """Send blobs in chunks."""

    async def server_info(self) -> pb.GetServerInfoResponse:
        """Versions, keys, target of native artifacts."""

    async def close(self) -> None:
        """Close the connection."""

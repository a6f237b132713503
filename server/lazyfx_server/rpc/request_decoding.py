"""Decodes requests: checks bounds on the bytes first, and parses large ones off the event loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.limits.held_bytes import MemoryHold, RequestMemory
from lazyfx_server.compiling.off_loop import compute
from lazyfx_server.compiling.request import IncomingCompile
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import InvalidRequestError
from lazyfx_server.security.scanning import (
    FieldBounds,
    Marked,
    MessageBounds,
    OverBoundError,
    scan,
)

_MESSAGES: Final[Mapping[str, type[Message]]] = {
    "GetArtifact": pb.GetArtifactRequest,
    "FindMissingBlobs": pb.FindMissingBlobsRequest,
    "UploadBlobs": pb.UploadBlobsRequest,
    "ListPasses": pb.ListPassesRequest,
    "GetServerInfo": pb.GetServerInfoRequest,
    "GetStats": pb.GetStatsRequest,
    "Prefetch": pb.PrefetchRequest,
    "RememberJob": pb.RememberJobRequest,
}
_BATCH_FIELDS: Final = MessageBounds(
    {1: FieldBounds("request_id", mark=True), 2: FieldBounds("request")}
)


class Decoder:
    """Decodes requests.

    Args:
        bounds: Bounds on the request of each method, by method name.
        held: Bounds their total bytes.
    """

    def __init__(self, bounds: Mapping[str, MessageBounds], held: RequestMemory) -> None:
        self._bounds = bounds
        self._held = held

    def reading(self, method: str, data: bytes, tenant: Tenant) -> _Reading:
        """Decode a request in an `async with` block; its bytes count until the end of the block.

        Args:
            method: Name of the method.
            data: The received bytes.
            tenant: Its tenant.

        Returns:
            The block, whose variable is an IncomingCompile for Compile and CompileBatch, else the
            request message of the method.

        Raises:
            InvalidRequestError: It is malformed, or something exceeds its bound; names the field
                and the bound.
            OverloadedError: Requests in flight hold too many bytes.
        """
        return _Reading(self, method, data, self._held.hold(tenant.name, len(data)))

    def decode(self, method: str, data: bytes, hold: MemoryHold) -> Any:
        """The request in these bytes; see `reading`."""
        try:
            marked = scan(data, self._bounds[method])
            if method == "Compile":
                return _incoming(data, Marked(0, 0, len(data)), marked, hold)
            if method == "CompileBatch":
                request = marked.get("request", Marked(0, 0, 0))
                return _incoming(data, request, marked, hold, "request.")
            return _MESSAGES[method].FromString(data)
        except OverBoundError as error:
            # In a batch, field paths are relative to the compile request.
            field = error.field.removeprefix("request.") or "request"
            raise InvalidRequestError.of_field(field, error.reason) from None
        except (DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequestError.of_field("request", "cannot be parsed") from error


class _Reading:
    """The block in which a request is in use.

    A class, not a generator: every hit enters one.
    """

    __slots__ = ("_data", "_decoder", "_hold", "_method")

    def __init__(self, decoder: Decoder, method: str, data: bytes, hold: MemoryHold) -> None:
        self._decoder = decoder
        self._method = method
        self._data = data
        self._hold = hold

    async def __aenter__(self) -> Any:
        method, data, hold = self._method, self._data, self._hold
        self._data = b""  # the block alone keeps the request
        hold.__enter__()
        try:
            # Nearly all of an upload is one field, which is skipped.
            read = 0 if method == "UploadBlobs" else len(data)
            return await compute(read, self._decoder.decode, method, data, hold)
        except BaseException:
            hold.__exit__(None, None, None)
            raise

    async def __aexit__(self, *outcome: object) -> None:
        self._hold.__exit__(None, None, None)


def request_id(data: bytes) -> int:
    """The id of a request in a batch, even if the rest cannot be parsed; 0 if there is none."""
    try:
        found = scan(data, _BATCH_FIELDS).get("request_id")
        if found is None:
            return 0
        return pb.CompileBatchRequest.FromString(data[found.begin : found.end]).request_id
    except (OverBoundError, DecodeError):
        return 0


def _incoming(
    data: bytes, where: Marked, marked: Mapping[str, Marked], hold: MemoryHold, path: str = ""
) -> IncomingCompile:
    """A compile request; the body of its graph stays in the received bytes, without a copy."""
    graph, body = marked.get(f"{path}graph"), marked.get(f"{path}graph.body")
    view = memoryview(data)
    if graph is None:
        request = pb.CompileRequest.FromString(data[where.start : where.end])
        return IncomingCompile(request, view[:0], len(data), hold)
    request = pb.CompileRequest.FromString(
        data[where.start : graph.begin] + data[graph.end : where.end]
    )
    request.graph.SetInParent()
    if body is None:
        request.graph.MergeFromString(data[graph.start : graph.end])
        return IncomingCompile(request, view[:0], len(data), hold)
    request.graph.MergeFromString(data[graph.start : body.begin] + data[body.end : graph.end])
    return IncomingCompile(request, view[body.start : body.end], len(data), hold)

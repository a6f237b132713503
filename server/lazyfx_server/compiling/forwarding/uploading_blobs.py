"""Sends the upstream the graphs and tensor values that it lacks, from the store of this server."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.forwarding.upstream_calls import UpstreamCalls, UpstreamFailureError

_CHUNK_BYTES: Final = 512 * 1024
_DIGESTS_AT_A_TIME: Final = 512
_BLOB: Final = re.compile(r"blobs/([0-9a-f]{64})")

Buffer = bytes | memoryview
ReadBlob = Callable[[bytes], Awaitable[Buffer | None]]


async def upload_missing(
    calls: UpstreamCalls, subjects: Sequence[str], sizes: Mapping[bytes, int], read: ReadBlob
) -> None:
    """Send what the upstream says is missing.

    Args:
        calls: The calls to the upstream.
        subjects: What it says, e.g. "blobs/<sha256 hex>".
        sizes: Size in bytes of each blob of the request, by SHA-256.
        read: Reads a blob of the caller.

    Raises:
        UpstreamFailureError: It asks for something else than blobs of this request, or a blob is no
            longer in the store.
        LazyfxError: A call failed.
    """
    wanted: list[graph_pb2.Digest] = []
    for subject in subjects:
        found = _BLOB.fullmatch(subject)
        sha256 = bytes.fromhex(found[1]) if found else b""
        if sha256 not in sizes:
            raise UpstreamFailureError("it asks for what is not in the request", "invalid")
        wanted.append(graph_pb2.Digest(sha256=sha256, size_bytes=sizes[sha256]))
    for start in range(0, len(wanted), _DIGESTS_AT_A_TIME):
        some = wanted[start : start + _DIGESTS_AT_A_TIME]
        offered = {digest.sha256: digest for digest in some}
        answer = await calls.find_missing(some)
        asked = {digest.sha256 for digest in answer.missing}
        if not asked <= offered.keys():
            raise UpstreamFailureError("it asks for a blob that was not offered", "invalid")
        # One at a time, so that no more than one is in memory.
        for sha256 in asked:
            data = await read(sha256)
            if data is None:
                raise UpstreamFailureError("a blob is no longer in the store", "failed")
            await calls.upload(_chunks(offered[sha256], data))


def _chunks(digest: graph_pb2.Digest, data: Buffer) -> Iterator[pb.UploadBlobsRequest]:
    for offset in range(0, max(1, len(data)), _CHUNK_BYTES):
        chunk = bytes(data[offset : offset + _CHUNK_BYTES])
        yield pb.UploadBlobsRequest(digest=digest, offset=offset, data=chunk)

"""Uploads what the server lacks, and resumes where a stream broke."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from lazyfx.capture.blob import Blob
from lazyfx.errors import (
    InvalidRequestError,
    OverloadedError,
    ProtocolError,
    ServerFaultError,
    TimedOutError,
    UnavailableError,
)
from lazyfx.flows import Flow, Pause
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

# Called with the bytes that the server has, and the total bytes.
Progress: TypeAlias = Callable[[int, int], None]
Find: TypeAlias = Callable[[Sequence[graph_pb2.Digest]], Flow[pb.FindMissingBlobsResponse]]
Upload: TypeAlias = Callable[[Iterator[bytes]], Flow[object]]
OnRefused: TypeAlias = Callable[[OverloadedError], Flow[None]]

CHUNK_BYTES = 512 * 1024
# Servers limit the number of digests in one request (max_digests).
DIGESTS_AT_A_TIME = 512
# How many streams may break without progress, and the seconds between them.
_MAX_FRUITLESS = 4
_PAUSE_SECONDS = 0.2


def upload(
    blobs: Sequence[Blob],
    find: Find,
    send: Upload,
    on_progress: Progress | None = None,
    *,
    on_refused: OnRefused,
) -> Flow[None]:
    """Send the blobs that a server lacks, chunk by chunk.

    If the stream breaks, the server is asked what it has received, and the rest is sent. Blobs that
    any client has already sent are not sent again.

    Args:
        blobs: The blobs that the server should have.
        find: Calls FindMissingBlobs.
        send: Calls UploadBlobs.
        on_progress: Called with the progress, at the start and with each chunk.
        on_refused: Waits for the retry delay of a refusal, or raises the refusal.

    Raises:
        ServiceError: One of its kinds, by the status; UnavailableError if several streams in a row
            broke without progress.
    """
    wanted = {blob.digest.sha256: blob for blob in blobs}
    missing = yield from _missing(find, wanted)
    total = sum(blob.digest.size_bytes for blob, _ in missing)
    fruitless = 0
    while missing:
        left = sum(blob.digest.size_bytes - offset for blob, offset in missing)
        try:
            yield from send(_chunks(missing, total - left, total, on_progress))
        except InvalidRequestError:
            # A partially received blob was corrupt: start it again.
            if not any(offset for _, offset in missing):
                raise
            missing = [(blob, 0) for blob, _ in missing]
        except OverloadedError as refusal:
            yield from on_refused(refusal)
            missing = yield from _missing(find, wanted)
        except (UnavailableError, TimedOutError, ServerFaultError):
            # gRPC reports a connection that broke during a write as INTERNAL. The server must
            # notice it too before it can say what it received.
            yield Pause(_PAUSE_SECONDS * (1 + fruitless))
            missing = yield from _missing(find, wanted)
            brought = left - sum(blob.digest.size_bytes - offset for blob, offset in missing)
            fruitless = 0 if brought > 0 else fruitless + 1
            if fruitless >= _MAX_FRUITLESS:
                raise
        else:
            return


def _missing(find: Find, wanted: dict[bytes, Blob]) -> Flow[list[tuple[Blob, int]]]:
    """The blobs that the server lacks, and how many bytes of each it has."""
    digests = [blob.digest for blob in wanted.values()]
    missing: list[tuple[Blob, int]] = []
    for start in range(0, len(digests), DIGESTS_AT_A_TIME):
        some = digests[start : start + DIGESTS_AT_A_TIME]
        answer = yield from find(some)
        missing += _missing_of(answer, {d.sha256: wanted[d.sha256] for d in some})
    return missing


def _missing_of(
    answer: pb.FindMissingBlobsResponse, offered: dict[bytes, Blob]
) -> list[tuple[Blob, int]]:
    """The blobs of an answer, and how many bytes of each the server has."""
    # Servers of earlier releases do not report what they have received.
    received = list(answer.received) or [0] * len(answer.missing)
    asked = [digest.sha256 for digest in answer.missing]
    if (
        len(received) != len(asked)
        or len(set(asked)) != len(asked)
        or not offered.keys() >= {*asked}
    ):
        raise ProtocolError("names a blob that was not offered, or one blob twice", field="missing")
    missing = [(offered[sha256], offset) for sha256, offset in zip(asked, received, strict=True)]
    if any(offset > blob.digest.size_bytes for blob, offset in missing):
        raise ProtocolError("exceeds the size of the blob", field="received")
    return missing


def _chunks(
    missing: Sequence[tuple[Blob, int]], sent: int, total: int, on_progress: Progress | None
) -> Iterator[bytes]:
    if on_progress:
        on_progress(sent, total)
    for blob, start in missing:
        data = blob.read()
        for offset in range(start, max(1, len(data)), CHUNK_BYTES):
            chunk = bytes(data[offset : offset + CHUNK_BYTES])
            request = pb.UploadBlobsRequest(digest=blob.digest, offset=offset, data=chunk)
            yield request.SerializeToString()
            sent += len(chunk)
            if on_progress:
                on_progress(sent, total)

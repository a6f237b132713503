"""Partially received blobs, and those kept from interrupted uploads."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from tempfile import SpooledTemporaryFile

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.limits.held_bytes import TenantBytes
from lazyfx_server.errors import InvalidRequestError, OverloadedError
from lazyfx_server.settings.limits import UploadLimits

# Larger uploads are written to files as they arrive.
_IN_MEMORY_BYTES = 256 * 1024
# Each interrupted upload is an open file.
_MAX_KEPT = 128
# Seconds for which an interrupted upload may be resumed.
_KEEP_SECONDS = 120.0


class StagedBlob:
    """A partially received blob."""

    def __init__(self, digest: graph_pb2.Digest) -> None:
        self.digest = digest
        self.sha256 = digest.sha256
        self.size = digest.size_bytes
        # In memory while it is small, then in an unnamed file.
        self._file = SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 - closed by `close`
        self.received = 0
        self._hash = hashlib.sha256()
        # A thread goes on when the call that started it has ended, and the upload is resumed.
        self._lock = threading.Lock()

    def add(self, chunk: pb.UploadBlobsRequest) -> None:
        """Add the next chunk.

        Raises:
            InvalidRequestError: It is not the next chunk of this blob.
            OverloadedError: The disk is full.
        """
        with self._lock:
            self._check(chunk)
            try:
                self._file.seek(self.received)
                self._file.write(chunk.data)
            except OSError as error:
                raise OverloadedError(
                    f"no space left for uploads: {error.strerror}", retry_after=30.0
                ) from error
            self._hash.update(chunk.data)
            self.received += len(chunk.data)

    def _check(self, chunk: pb.UploadBlobsRequest) -> None:
        if chunk.digest.sha256 != self.sha256 or chunk.digest.size_bytes != self.size:
            raise InvalidRequestError.of_field(
                "digest", "changed before the blob was complete; send blobs one after the other"
            )
        if chunk.offset != self.received:
            raise InvalidRequestError.of_field(
                "offset", f"is {chunk.offset}; the next byte is {self.received}"
            )
        if self.received + len(chunk.data) > self.size:
            raise InvalidRequestError.of_field(
                "data", f"runs past the {self.size} bytes that digest.size_bytes announced"
            )
        if not chunk.data and self.size:
            raise InvalidRequestError.of_field("data", "is empty; every chunk must contain bytes")

    def read(self, start: int, size: int) -> bytes:
        """Some of the received bytes."""
        with self._lock:
            self._file.seek(start)
            return self._file.read(size)

    @property
    def complete(self) -> bool:
        """Whether all bytes have arrived."""
        return self.received == self.size

    def verified(self) -> bytes:
        """The bytes.

        Raises:
            InvalidRequestError: They do not match the digest.
        """
        if self._hash.digest() != self.sha256:
            raise InvalidRequestError.of_field(
                "digest.sha256", "does not match the received bytes; send the blob again"
            )
        return self.read(0, self.size)

    def close(self) -> None:
        """Release the bytes. May be called twice."""
        self._file.close()


class UnfinishedUploads:
    """Counts the bytes of unfinished uploads by tenant, and keeps interrupted ones.

    Kept bytes count too, but are dropped when space is needed.

    Args:
        limits: Bounds on uploads.
    """

    def __init__(self, limits: UploadLimits) -> None:
        self._of_one = limits.bound("max_staged_bytes")
        self._of_all = limits.bound("max_staged_bytes_in_all")
        self._bytes = TenantBytes()
        # Oldest first, with their bytes as counted: a thread may still be adding some.
        self._kept: dict[tuple[str, bytes], tuple[StagedBlob, int]] = {}

    def add(self, tenant: str, size: int) -> None:
        """Count received bytes.

        Raises:
            OverloadedError: They exceed a bound.
        """
        while self._bytes.of(tenant) + size > self._of_one.most and self._drop_oldest(tenant):
            pass
        if self._bytes.of(tenant) + size > self._of_one.most:
            raise OverloadedError(
                f"unfinished uploads hold {self._bytes.of(tenant)} bytes; {self._of_one.allowed}",
                retry_after=1.0,
            )
        if self._bytes.all + size > self._of_all.most:
            raise OverloadedError(
                f"unfinished uploads of all callers hold {self._bytes.all} bytes; "
                f"{self._of_all.allowed}",
                retry_after=5.0,
            )
        self._bytes.add(tenant, size)

    def remove(self, tenant: str, size: int) -> None:
        """Stop counting bytes."""
        self._bytes.remove(tenant, size)

    def keep(self, tenant: str, staged: StagedBlob) -> bool:
        """Keep an interrupted upload, whose bytes no longer count, for a limited time.

        Uploads in memory are so small that sending them again is cheaper than keeping them.

        Returns:
            Whether it is kept.
        """
        size = staged.received
        over = self._bytes.of(tenant) + size > self._of_one.most
        if size <= _IN_MEMORY_BYTES or over or self._bytes.all + size > self._of_all.most:
            return False
        if len(self._kept) >= _MAX_KEPT and not self._drop_oldest(tenant):
            return False
        self._drop(tenant, staged.sha256)
        self._kept[tenant, staged.sha256] = staged, size
        self._bytes.add(tenant, size)
        asyncio.get_running_loop().call_later(_KEEP_SECONDS, self._expire, tenant, staged)
        return True

    def take(self, tenant: str, sha256: bytes) -> StagedBlob | None:
        """Take the kept part of a blob out."""
        staged, size = self._kept.pop((tenant, sha256), (None, 0))
        if staged is not None:
            self.remove(tenant, size)
        return staged

    def received(self, tenant: str, sha256: bytes) -> int:
        """How many bytes of a blob are kept."""
        staged, _ = self._kept.get((tenant, sha256), (None, 0))
        return 0 if staged is None else staged.received

    def _drop_oldest(self, tenant: str) -> bool:
        oldest = next((sha256 for name, sha256 in self._kept if name == tenant), None)
        return oldest is not None and self._drop(tenant, oldest)

    def _expire(self, tenant: str, staged: StagedBlob) -> None:
        if self._kept.get((tenant, staged.sha256), (None, 0))[0] is staged:
            self._drop(tenant, staged.sha256)

    def _drop(self, tenant: str, sha256: bytes) -> bool:
        staged = self.take(tenant, sha256)
        if staged is not None:
            staged.close()
        return staged is not None

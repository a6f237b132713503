"""Uploads: what has arrived of a blob, and what is left of those that broke off."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.errors import InvalidRequestError, OverloadedError

# Seconds for which an upload that broke off may go on.
_KEEP_SECONDS = 120.0


class Staged:
    """A blob that is arriving."""

    def __init__(self, digest: graph_pb2.Digest) -> None:
        self.sha256 = digest.sha256
        self.size = digest.size_bytes
        self.data = bytearray()
        self._hash = hashlib.sha256()

    def add(self, chunk: pb.UploadBlobsRequest) -> None:
        """Take in the next chunk.

        Raises:
            InvalidRequestError: It is not the next chunk of this blob.
        """
        if chunk.digest.sha256 != self.sha256 or chunk.digest.size_bytes != self.size:
            raise InvalidRequestError.of_field(
                "digest", "changed before the blob was complete; send blobs one after the other"
            )
        if chunk.offset != len(self.data):
            raise InvalidRequestError.of_field(
                "offset", f"is {chunk.offset}; the next byte is {len(self.data)}"
            )
        if len(self.data) + len(chunk.data) > self.size:
            raise InvalidRequestError.of_field(
                "data", f"runs past the {self.size} bytes that digest.size_bytes announced"
            )
        if not chunk.data and self.size:
            raise InvalidRequestError.of_field("data", "is empty; every chunk carries bytes")
        self.data += chunk.data
        self._hash.update(chunk.data)

    @property
    def complete(self) -> bool:
        """Whether all bytes have arrived."""
        return len(self.data) == self.size

    def verified(self) -> bytes:
        """The bytes.

        Raises:
            InvalidRequestError: They do not have the digest.
        """
        if self._hash.digest() != self.sha256:
            raise InvalidRequestError.of_field(
                "digest.sha256", "is not the digest of the bytes that came; send the blob again"
            )
        return bytes(self.data)


class Unfinished:
    """Counts the bytes that are not stored yet, by tenant, and keeps what broke off.

    Kept bytes count like those that are arriving; they make room when there is none.

    Args:
        most: Most bytes of one tenant.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes: Counter[str] = Counter()
        # Oldest first.
        self._kept: dict[tuple[str, bytes], Staged] = {}

    def add(self, tenant: str, size: int) -> None:
        """Count bytes that have come.

        Raises:
            OverloadedError: There is no room for them.
        """
        while self._bytes[tenant] + size > self._most and self._drop_oldest(tenant):
            pass
        if self._bytes[tenant] + size > self._most:
            raise OverloadedError(
                f"unfinished uploads hold {self._bytes[tenant]} bytes; at most {self._most} are "
                "taken at a time (setting max_staged_bytes)",
                retry_after=1.0,
            )
        self._bytes[tenant] += size

    def remove(self, tenant: str, size: int) -> None:
        """Count bytes no longer."""
        self._bytes[tenant] -= size
        if not self._bytes[tenant]:
            del self._bytes[tenant]

    def keep(self, tenant: str, staged: Staged) -> None:
        """Keep an upload that broke off, whose bytes are counted no longer; not for ever."""
        if not staged.data or self._bytes[tenant] + len(staged.data) > self._most:
            return
        self.take(tenant, staged.sha256)
        self._kept[tenant, staged.sha256] = staged
        self._bytes[tenant] += len(staged.data)
        asyncio.get_running_loop().call_later(_KEEP_SECONDS, self._expire, tenant, staged)

    def take(self, tenant: str, sha256: bytes) -> Staged | None:
        """What was kept of a blob; it is kept no longer."""
        staged = self._kept.pop((tenant, sha256), None)
        if staged is not None:
            self.remove(tenant, len(staged.data))
        return staged

    def received(self, tenant: str, sha256: bytes) -> int:
        """How many bytes of a blob are kept."""
        staged = self._kept.get((tenant, sha256))
        return 0 if staged is None else len(staged.data)

    def _drop_oldest(self, tenant: str) -> bool:
        oldest = next((sha256 for name, sha256 in self._kept if name == tenant), None)
        return oldest is not None and self.take(tenant, oldest) is not None

    def _expire(self, tenant: str, staged: Staged) -> None:
        if self._kept.get((tenant, staged.sha256)) is staged:
            self.take(tenant, staged.sha256)

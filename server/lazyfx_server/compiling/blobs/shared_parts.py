"""The received part of a large upload, in pieces that all servers of a store can read.

So an upload that broke off goes on at whichever server answers, also if the first one was killed.
Each piece is written once it is complete, while the next one arrives; a slow or broken store only
means that less can be resumed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Final

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.blobs.unfinished_uploads import StagedBlob
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.store import Store
from lazyfx_server.store.shared_store import LARGE_BYTES

PART_BYTES: Final = LARGE_BYTES
"""Bytes of a piece in a single store, e.g. Redis, which deletes it at once."""

BUCKET_PART_BYTES: Final = 2 * LARGE_BYTES
"""Bytes of a piece if large entries are in a bucket: there, so that they evict no small ones."""

# Blobs of fewer pieces are sent again sooner than they are looked up.
_LEAST_PIECES: Final = 2
_AT_ONCE: Final = 4
_CLOSE_SECONDS: Final = 2.0


class SharedParts:
    """Pieces of blobs that have not arrived completely.

    Args:
        store: The store of several servers; None if this server shares none.
        piece: Bytes of a piece; the same on all servers.
    """

    def __init__(self, store: Store | None, piece: int = PART_BYTES) -> None:
        self._store = store
        self._piece = piece
        self._least = _LEAST_PIECES * piece
        self._dropping: set[asyncio.Task[None]] = set()

    async def received(
        self, digests: Iterable[graph_pb2.Digest], tenant: Tenant
    ) -> dict[bytes, int]:
        """How many bytes of blobs there are, by SHA-256; nothing for those without any.

        A blob is asked for a few times only, however large it is. If a piece in the middle has
        been lost, this may be more than can be read; the upload then begins again.
        """
        large = {d.sha256: d for d in digests if d.size_bytes >= self._least}
        if self._store is None or not large:
            return {}
        firsts = {_place(digest, tenant, 0): sha256 for sha256, digest in large.items()}
        begun = [firsts[place] for place in await self._store.contains(firsts)]
        # So many pieces are there, and so many may be there.
        known = dict.fromkeys(begun, 1)
        most = {sha256: self._count(large[sha256]) for sha256 in begun}
        while unsure := [sha256 for sha256 in begun if known[sha256] < most[sha256]]:
            halves = {sha256: (known[sha256] + most[sha256] + 1) // 2 for sha256 in unsure}
            places = {s: _place(large[s], tenant, half - 1) for s, half in halves.items()}
            present = await self._store.contains(places.values())
            for sha256, half in halves.items():
                if places[sha256] in present:
                    known[sha256] = half
                else:
                    most[sha256] = half - 1
        return {sha256: count * self._piece for sha256, count in known.items()}

    def may_read(self, digest: graph_pb2.Digest, size: int) -> bool:
        """Whether the first bytes of a blob, so many, may be in pieces."""
        whole = not size % self._piece and 0 < size < digest.size_bytes
        return self._store is not None and digest.size_bytes >= self._least and whole

    async def read(self, digest: graph_pb2.Digest, tenant: Tenant, size: int) -> StagedBlob | None:
        """The first bytes of a blob, as if they had been received here; None if they are gone.

        See `may_read`.

        Raises:
            OverloadedError: The disk is full.
        """
        if self._store is None or not self.may_read(digest, size):
            return None
        blob = StagedBlob(digest)
        try:
            for number in range(size // self._piece):
                data = await self._store.get(_place(digest, tenant, number))
                if data is None or len(data) != self._piece:
                    blob.close()
                    return None
                chunk = pb.UploadBlobsRequest(digest=digest, offset=blob.received, data=data)
                await asyncio.to_thread(blob.add, chunk)
        except BaseException:  # also if the caller has left
            blob.close()
            raise
        return blob

    def writer(self, blob: StagedBlob, tenant: Tenant) -> PartWriter | None:
        """Writes the pieces of a blob as they become complete; None if that is not worth it."""
        if self._store is None or blob.size < self._least:
            return None
        return PartWriter(self._store, blob, tenant, self._piece)

    def drop(self, blob: StagedBlob, tenant: Tenant, writer: PartWriter | None) -> None:
        """Delete the pieces of what has arrived of a blob, soon.

        Args:
            blob: All of it has arrived, or its bytes are wrong.
            tenant: Whose it is.
            writer: What may still write some of them.
        """
        pieces = min(blob.received // self._piece, self._count(blob.digest))
        if self._store is None or blob.size < self._least or not pieces:
            return
        places = [_place(blob.digest, tenant, number) for number in range(pieces)]
        task = asyncio.ensure_future(_delete(self._store, places, writer))
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    async def close(self) -> None:
        """Wait until what was dropped is deleted, for a few seconds at most."""
        if self._dropping:
            await asyncio.wait(self._dropping, timeout=_CLOSE_SECONDS)

    def _count(self, digest: graph_pb2.Digest) -> int:
        return _count(digest, self._piece)


class PartWriter:
    """Writes the pieces of one blob, a few at a time: a bucket takes long for each.

    Args:
        store: Where to.
        blob: The blob, which grows.
        tenant: Whose it is.
        piece: Bytes of a piece.
    """

    def __init__(self, store: Store, blob: StagedBlob, tenant: Tenant, piece: int) -> None:
        self._store = store
        self._blob = blob
        self._tenant = tenant
        # What was there before was read from the store, or is kept by this server.
        self._next = blob.received // piece
        self._piece = piece
        self._writing: deque[asyncio.Task[None]] = deque()

    async def advance(self) -> None:
        """Begin to write pieces that have become complete; waits if too many are being written."""
        whole = self._blob.received // self._piece
        complete = min(whole, _count(self._blob.digest, self._piece))
        while self._next < complete:
            if len(self._writing) >= _AT_ONCE:
                await asyncio.wait({self._writing.popleft()})
            start = self._next * self._piece
            data = await asyncio.to_thread(self._blob.read, start, self._piece)
            place = _place(self._blob.digest, self._tenant, self._next)
            self._writing.append(asyncio.ensure_future(self._store.put(place, data)))
            self._next += 1

    async def finish(self) -> None:
        """Wait until what was begun is written. The store bounds how long that takes."""
        if self._writing:
            await asyncio.wait(self._writing)


def _count(digest: graph_pb2.Digest, piece: int) -> int:
    """The number of pieces. The last bytes of a blob are in none: it is then complete."""
    return (digest.size_bytes - 1) // piece


def _place(digest: graph_pb2.Digest, tenant: Tenant, number: int) -> str:
    return tenant.part(digest.sha256, digest.size_bytes, number)


async def _delete(store: Store, places: Iterable[str], writer: PartWriter | None) -> None:
    if writer is not None:  # otherwise what it writes would come after
        await writer.finish()
    for place in places:
        await store.delete(place)

"""Receives blobs from clients, and reports which are missing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.blobs.shared_parts import PART_BYTES, PartWriter, SharedParts
from lazyfx_server.compiling.blobs.unfinished_uploads import StagedBlob, UnfinishedUploads
from lazyfx_server.compiling.flights.fleet_flights import FleetFlights
from lazyfx_server.compiling.limits.request_checks import check_digest
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import InvalidRequestError, OverloadedError, TimedOutError
from lazyfx_server.settings.limits import UploadLimits
from lazyfx_server.store import Store

# Digests that are looked up before yielding to the event loop.
_DIGESTS_AT_ONCE = 64
_LARGE_BYTES = 2**20


class Blobs:
    """Receives content-addressed bytes.

    Args:
        store: The store of blobs.
        limits: Bounds on uploads.
        fleet: Servers that may be asked next for what has been uploaded here.
        shared: The store that they share; None if there are none.
        piece: Bytes of the pieces in which they share what has arrived.
    """

    def __init__(
        self,
        store: Store,
        limits: UploadLimits,
        fleet: FleetFlights,
        shared: Store | None = None,
        piece: int = PART_BYTES,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._limits = limits
        # Uploads go to files; only one large one at a time is read into memory, for the store.
        self._one_large = asyncio.Lock()
        self._unfinished = UnfinishedUploads(limits)
        self._parts = SharedParts(shared, piece)

    async def missing(
        self, digests: Sequence[graph_pb2.Digest], tenant: Tenant
    ) -> list[tuple[graph_pb2.Digest, int]]:
        """The digests of blobs that the tenant has not sent, in request order.

        Each comes with the number of bytes received in an interrupted upload.

        Raises:
            InvalidRequestError: A digest is malformed, or there are too many.
        """
        most = self._limits.bound("max_digests")
        if len(digests) > most.most:
            raise InvalidRequestError.of_field(
                "digests",
                f"has {len(digests)} entries; ask for at most {most.most} at a time{most}",
            )
        missing: list[tuple[graph_pb2.Digest, int]] = []
        for start in range(0, len(digests), _DIGESTS_AT_ONCE):
            missing += await self._missing_of(digests, start, tenant)
        return missing

    async def _missing_of(
        self, digests: Sequence[graph_pb2.Digest], start: int, tenant: Tenant
    ) -> list[tuple[graph_pb2.Digest, int]]:
        some = digests[start : start + _DIGESTS_AT_ONCE]
        for i, digest in enumerate(some, start):
            check_digest(f"digests[{i}]", digest)
        places = [tenant.blob(digest.sha256) for digest in some]
        present = await self._store.contains(places)
        # A store in memory never yields to the event loop.
        await asyncio.sleep(0)
        missing = [d for d, place in zip(some, places, strict=True) if place not in present]
        here = {d.sha256: self._unfinished.received(tenant.name, d.sha256) for d in missing}
        # The size is the caller's word. Longer blobs are refused when they are sent.
        most = self._limits.bound("max_blob_bytes").most
        begun = (d for d in missing if not here[d.sha256] and d.size_bytes <= most)
        shared = await self._parts.received(begun, tenant)
        return [(d, here[d.sha256] or shared.get(d.sha256, 0)) for d in missing]

    async def upload(
        self, chunks: AsyncIterator[pb.UploadBlobsRequest], tenant: Tenant
    ) -> tuple[int, int]:
        """Receive a stream of chunks.

        A blob is stored when all bytes have arrived and the digest matches. If its stream breaks
        off, the received part is kept for a while, so that another upload can resume.

        Returns:
            The number of stored blobs and their bytes.

        Raises:
            InvalidRequestError: A chunk is out of order or too long, or a digest does not match.
            TimedOutError: No chunk arrived for too long, or the upload is too slow.
            OverloadedError: The tenant has too many unfinished uploads.
        """
        upload = _Upload(self._unfinished, self._parts, tenant)
        keep, drop = True, False
        try:
            return await self._take(chunks, tenant, upload)
        except InvalidRequestError:  # its bytes may be wrong
            keep, drop = False, True
            raise
        except OverloadedError:
            keep = False
            raise
        finally:
            await upload.end(keep=keep, drop=drop)

    async def close(self) -> None:
        """Wait until pieces are deleted that nobody needs. The store bounds how long that takes."""
        await self._parts.close()

    async def _take(
        self, chunks: AsyncIterator[pb.UploadBlobsRequest], tenant: Tenant, upload: _Upload
    ) -> tuple[int, int]:
        stored: set[str] = set()
        count = stored_bytes = 0
        limits, most = self._limits, self._limits.bound("max_blob_bytes")
        async for chunk in _within(chunks, limits.upload_idle_timeout, limits.min_upload_rate):
            check_digest("digest", chunk.digest)
            if chunk.digest.size_bytes > most.most:
                raise InvalidRequestError.of_field(
                    "digest.size_bytes", f"is {chunk.digest.size_bytes}; {most.allowed}"
                )
            blob = await upload.add(chunk)
            if blob.complete:
                large = blob.size > _LARGE_BYTES
                async with self._one_large if large else contextlib.nullcontext():
                    data = await asyncio.to_thread(blob.verified)
                    await self._store.put(tenant.blob(blob.sha256), data)
                    del data
                stored.add(tenant.blob(blob.sha256))
                count += 1
                stored_bytes += blob.size
                await upload.end(keep=False, drop=True)
        if upload.blob is not None:
            arrived, size = upload.blob.received, upload.blob.size
            # A broken connection looks the same.
            await upload.end(keep=True)
            raise InvalidRequestError.of_field(
                "data", f"the stream ended after {arrived} of {size} bytes"
            )
        await self._fleet.publish(stored, stored_bytes)
        return count, stored_bytes


class _Upload:
    """One stream of chunks: the current blob, and its counted bytes."""

    def __init__(self, unfinished: UnfinishedUploads, parts: SharedParts, tenant: Tenant) -> None:
        self._unfinished = unfinished
        self._parts = parts
        self._tenant = tenant
        self._bytes = 0
        self._writer: PartWriter | None = None
        self.blob: StagedBlob | None = None

    async def add(self, chunk: pb.UploadBlobsRequest) -> StagedBlob:
        """Add a chunk, the first of a blob or the next one."""
        if self.blob is None:
            self.blob = await self._begun(chunk) or StagedBlob(chunk.digest)
            self._writer = self._parts.writer(self.blob, self._tenant)
        self._count(len(chunk.data))
        await asyncio.to_thread(self.blob.add, chunk)
        if self._writer is not None:
            await self._writer.advance()
        return self.blob

    async def _begun(self, chunk: pb.UploadBlobsRequest) -> StagedBlob | None:
        """The part that an earlier upload has brought, counted, if this one goes on from there."""
        digest = chunk.digest
        kept = self._unfinished.take(self._tenant.name, digest.sha256)
        is_shared = self._parts.may_read(digest, chunk.offset)
        is_next = kept is not None and kept.received == chunk.offset
        # If it has less, the upload may have gone on at another server before it came back.
        is_usable = chunk.offset and (is_next or not is_shared)
        if kept is not None and kept.size == digest.size_bytes and is_usable:
            self.blob = kept
            self._count(kept.received)
            return kept
        if kept is not None:
            kept.close()
        if not is_shared:
            return None
        # Before it is read: there must be room on the disk.
        self._count(chunk.offset)
        shared = await self._parts.read(digest, self._tenant, chunk.offset)
        if shared is None:
            self._unfinished.remove(self._tenant.name, chunk.offset)
            self._bytes -= chunk.offset
        return shared

    def _count(self, size: int) -> None:
        self._unfinished.add(self._tenant.name, size)
        self._bytes += size

    async def end(self, *, keep: bool, drop: bool = False) -> None:
        """Stop counting the blob.

        Args:
            keep: Keep the received part here, because the upload may be resumed.
            drop: Delete its shared pieces.
        """
        self._unfinished.remove(self._tenant.name, self._bytes)
        blob, writer = self.blob, self._writer
        self._bytes, self.blob, self._writer = 0, None, None
        if blob is not None and not (keep and self._unfinished.keep(self._tenant.name, blob)):
            blob.close()
        if blob is not None and drop:
            self._parts.drop(blob, self._tenant, writer)
        if writer is not None:
            await writer.finish()


async def _within(
    chunks: AsyncIterator[pb.UploadBlobsRequest], seconds: float, rate: int
) -> AsyncIterator[pb.UploadBlobsRequest]:
    """The chunks, each within `seconds` of the previous one, and overall not too slow."""
    started, received = time.monotonic(), 0
    while True:
        try:
            chunk = await asyncio.wait_for(anext(chunks), seconds)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError as error:
            raise TimedOutError(
                f"no chunk arrived for {seconds:g} s (setting upload_idle_timeout)"
            ) from error
        received += len(chunk.data)
        taken = time.monotonic() - started
        if taken > seconds and received < rate * taken:
            raise TimedOutError(
                f"received {received} bytes in {taken:.0f} s; uploads must sustain {rate} bytes/s "
                "(setting min_upload_rate)"
            )
        yield chunk

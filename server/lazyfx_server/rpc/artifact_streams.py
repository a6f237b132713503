"""Artifacts as streams of messages: header, chunks, trailer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.artifacts import Artifact
from lazyfx_server.compiling.prefetching.prefetching import Prefetching
from lazyfx_server.errors import InvalidRequestError, OverloadedError
from lazyfx_server.rpc.caller import Caller

CHUNK_BYTES = 512 * 1024


def artifact_parts(artifact: Artifact, offset: int = 0) -> Iterator[pb.GetArtifactResponse]:
    """The messages that an artifact is sent in.

    Args:
        artifact: The artifact.
        offset: The first byte to send.

    Raises:
        InvalidRequestError: The artifact is shorter than that.
    """
    size = len(artifact.data)
    if offset > size:
        raise InvalidRequestError.of_field("offset", f"is {offset}; the artifact has {size} bytes")
    yield pb.GetArtifactResponse(
        header=pb.ArtifactHeader(
            kind=artifact.kind,
            size_bytes=size,
            media_type=artifact.media_type,
            rendered=artifact.rendered,
        )
    )
    for start in range(offset, size, CHUNK_BYTES):
        data = artifact.data[start : start + CHUNK_BYTES]
        yield pb.GetArtifactResponse(chunk=pb.ArtifactChunk(offset=start, data=data))
    yield pb.GetArtifactResponse(
        trailer=pb.ArtifactTrailer(
            digest=artifact.digest,
            recompiles=artifact.recompiles,
            render_seconds=artifact.render_seconds,
            signature=artifact.signature,
        )
    )


async def prefetched_parts(
    prefetching: Prefetching,
    request: pb.PrefetchRequest,
    caller: Caller,
    server: pb.GetServerInfoResponse,
) -> AsyncIterator[pb.PrefetchResponse]:
    """What a job asked for when it last ran.

    Args:
        prefetching: Finds it.
        request: Names the job.
        caller: Is charged for each artifact; the stream ends at its quota.
        server: What GetServerInfo would answer.

    Raises:
        InvalidRequestError: A field of the request is wrong.
    """
    planned = await prefetching.plan(request, caller.tenant)
    plan = pb.PrefetchPlan(server=server, keys=[known.key for known in planned])
    yield pb.PrefetchResponse(plan=plan)
    found = prefetching.read(
        planned, max_bytes=request.max_bytes, without_libraries=request.without_libraries
    )
    async for known, artifact in found:
        try:
            caller.charge_call("GetArtifact", 0)
        except OverloadedError:
            return  # the caller asks for the rest, and is told why it has to wait
        whole = pb.CompileResponse.FromString(known.resolved.module.hit)
        answer = pb.CompileResponse(
            module_key=whole.module_key, cache=pb.CacheResult(status=whole.cache.status)
        )
        yield pb.PrefetchResponse(module=pb.PrefetchedModule(key=known.key, compiled=answer))
        for part in artifact_parts(artifact):
            yield pb.PrefetchResponse(artifact=part)

"""Downloads artifacts from the upstream, and checks who signed them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from lazyfx.errors import ArtifactError
from lazyfx.shared.answers.answer_bounds import AnswerBounds
from lazyfx.shared.answers.downloads import Download
from lazyfx.shared.native.native_answers import read_artifact
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.forwarding.upstream_calls import UpstreamCalls, UpstreamFailureError
from lazyfx_server.compiling.forwarding.upstream_keys import UpstreamKeys
from lazyfx_server.compiling.off_loop import compute
from lazyfx_server.jobs.artifact_kinds import ARTIFACT_KINDS

OnProgress = Callable[[pb.ArtifactProgress], None]

BOUNDS: Final = AnswerBounds(
    max_graph_bytes=64 * 2**20,
    max_constant_bytes=2**30,
    max_text_bytes=128 * 2**20,
    max_artifact_bytes=2**30,
)
"""What an upstream may send. Less than a client would accept: a server holds answers for many."""


class Downloads:
    """Downloads artifacts.

    Args:
        calls: The calls to the upstream.
        keys: The keys that may sign its artifacts.
        learn: Asks the upstream for its keys: it may have a new one.
    """

    def __init__(
        self, calls: UpstreamCalls, keys: UpstreamKeys, learn: Callable[[], Awaitable[None]]
    ) -> None:
        self._calls = calls
        self._keys = keys
        self._learn = learn

    async def artifact(
        self,
        request: pb.GetArtifactRequest,
        pipeline: str,
        on_progress: OnProgress | None = None,
    ) -> tuple[bytes, pb.ArtifactSignature]:
        """A complete artifact and its signature, which a trusted key made for just this artifact.

        Args:
            request: Names it.
            pipeline: The passes that must have made its module.
            on_progress: Called with the progress of a native compile.

        Raises:
            UpstreamFailureError: The answer is not to be used.
            LazyfxError: The call failed, or the stream is malformed.
        """
        download = Download(request, BOUNDS, on_progress)
        download.begin()
        parts: Any = self._calls.artifact(request)
        async with aclosing(parts):  # stop reading from a server that sends too much
            async for part in parts:
                download.take(part)
        size = download.received
        data, trailer = await compute(size, download.finish)
        if not self._keys.knows(trailer.signature.key_id):
            await self._learn()
        self._keys.check(
            trailer.signature,
            digest=trailer.digest.sha256,
            module_key=request.module_key,
            kind=request.kind,
            pipeline=pipeline,
        )
        await compute(size, _check_content, request, data)
        return data, trailer.signature


def _check_content(request: pb.GetArtifactRequest, data: bytes) -> None:
    """Check what callers may rely on in an artifact of this kind.

    Raises:
        UpstreamFailureError: It is not text, or was not compiled for the machine that asked.
    """
    try:
        if ARTIFACT_KINDS[request.kind].is_text:
            data.decode("utf-8")
        elif request.kind == pb.ARTIFACT_KIND_INDUCTOR:
            read_artifact(pb.NativeBundle, data, request.native)
        elif request.kind == pb.ARTIFACT_KIND_AOT_INDUCTOR:
            read_artifact(pb.AotPackage, data, request.native)
    except (UnicodeDecodeError, ArtifactError) as error:
        raise UpstreamFailureError(f"it sent an unusable artifact: {error}", "invalid") from error

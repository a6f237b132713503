"""Assembles what a server sends before it is asked for; stops at the first part out of order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Protocol

from lazyfx.errors import ProtocolError
from lazyfx.report import cache_of
from lazyfx.shared.answers.answer_bounds import AnswerBounds
from lazyfx.shared.answers.downloads import Download
from lazyfx.shared.answers.responses import check_response
from lazyfx.shared.native.prefetch_keys import KEY_BYTES, MAX_ARTIFACTS
from lazyfx.trust.verifying import Provenance
from lazyfx.v1 import compiler_pb2 as pb

# Two keys and the cache status; a server has no reason to send more.
_MAX_MODULE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class PrefetchedArtifact:
    """A native artifact that arrived before it was asked for; its signature has been verified.

    Attributes:
        key: From `prefetch_key`.
        cache: What the server would say of the compile: "hit".
        data: A serialized NativeBundle, perhaps without libraries.
        provenance: Who signed it.
    """

    key: bytes
    cache: str
    data: bytes
    provenance: Provenance


class PrefetchReceiver(Protocol):
    """What receives artifacts while they arrive, in the thread that reads them."""

    @property
    def wants_more(self) -> bool:
        """Whether to read on."""

    def progressed(self) -> None:
        """Called for each part."""

    def planned(self, plan: pb.PrefetchPlan) -> None:
        """Called once, with the keys of what will arrive, if the server is trusted."""

    def arrived(self, artifact: PrefetchedArtifact) -> None:
        """Called with each artifact."""


@dataclass(frozen=True, slots=True)
class UnverifiedArtifact:
    """A complete artifact whose signature has not been verified.

    Attributes:
        key: From `prefetch_key`.
        module_key: The compiled module that it belongs to.
        cache: What the server would say of the compile: "hit".
        data: Its bytes, which match the digest in its trailer.
        trailer: Has the signature.
    """

    key: bytes
    module_key: bytes
    cache: str
    data: bytes
    trailer: pb.ArtifactTrailer

    @property
    def request(self) -> pb.GetArtifactRequest:
        """The request that would have fetched it."""
        return pb.GetArtifactRequest(module_key=self.module_key, kind=pb.ARTIFACT_KIND_INDUCTOR)


class PrefetchStream:
    """Assembles the parts of one stream.

    Args:
        bounds: Bounds on each answer.
        max_bytes: Bytes of all artifacts; what is said of each is bounded by itself.
    """

    def __init__(self, bounds: AnswerBounds, max_bytes: int) -> None:
        self._bounds = bounds
        self._left = min(max_bytes, bounds.max_artifact_bytes)
        self._expected: list[bytes] | None = None
        self._module: pb.PrefetchedModule | None = None
        self._download: Download | None = None

    def take(self, part: pb.PrefetchResponse) -> pb.PrefetchPlan | UnverifiedArtifact | None:
        """Add the next part.

        Returns:
            The plan, or an artifact that this part completes.

        Raises:
            ProtocolError: It is out of order, malformed, or too much.
            ArtifactError: An artifact does not match its size or digest.
        """
        kind = part.WhichOneof("part")
        if kind == "plan" and self._expected is None:
            self._expected = _checked_keys(part.plan)
            return part.plan
        if kind == "module" and self._expected is not None and self._module is None:
            self._begin(part.module)
        elif kind == "artifact" and self._download is not None:
            self._download.take(part.artifact)
            if part.artifact.WhichOneof("part") == "trailer":
                return self._complete(self._download)
        else:
            raise ProtocolError(f"the server sent {kind}, which does not belong here", field="part")
        return None

    def _begin(self, module: pb.PrefetchedModule) -> None:
        if self._expected is None or module.key not in self._expected:
            raise ProtocolError("is not one that was announced", field="module.key")
        if (size := module.ByteSize()) > _MAX_MODULE_BYTES:
            raise ProtocolError(
                f"has {size} bytes; at most {_MAX_MODULE_BYTES} are allowed", field="module"
            )
        self._expected.remove(module.key)
        check_response(module.compiled, self._bounds)
        self._module = module
        bounds = replace(self._bounds, max_artifact_bytes=self._left)
        self._download = Download(pb.GetArtifactRequest(kind=pb.ARTIFACT_KIND_INDUCTOR), bounds)

    def _complete(self, download: Download) -> UnverifiedArtifact:
        assert self._module is not None
        data, trailer = download.finish()
        self._left -= len(data)
        compiled = self._module.compiled
        whole = UnverifiedArtifact(
            self._module.key, compiled.module_key, cache_of(compiled.cache).status, data, trailer
        )
        self._module = self._download = None
        return whole


def _checked_keys(plan: pb.PrefetchPlan) -> list[bytes]:
    if len(plan.keys) > MAX_ARTIFACTS:
        raise ProtocolError(
            f"has {len(plan.keys)} entries; at most {MAX_ARTIFACTS} are allowed", field="plan.keys"
        )
    if any(len(key) != KEY_BYTES for key in plan.keys):
        raise ProtocolError(f"a key must be {KEY_BYTES} bytes long", field="plan.keys")
    return list(plan.keys)

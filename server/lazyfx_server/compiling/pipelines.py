"""Resolves pass lists, and caches them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.limits.request_checks import MAX_SPELLING
from lazyfx_server.errors import InvalidRequestError
from lazyfx_server.passes import PassError, Registry
from lazyfx_server.passes.named_pipelines import NamedPipelines
from lazyfx_server.passes.pass_requests import pipeline_of

# The number is raised when comparisons see more than before: what passed earlier ones may not pass.
_VERIFY = b"verify-2"
_MAX_REMEMBERED = 1024
MAX_REMEMBERED = 8192
"""Maximum characters of the spelling of a cached pipeline."""


@dataclass(frozen=True, slots=True)
class PipelineName:
    """A pipeline's fingerprint for keys, and its spelling for people.

    Attributes:
        fingerprint: 32 bytes that change whenever results may change.
        spelling: Canonical text.
    """

    fingerprint: bytes
    spelling: str


class Pipelines:
    """Resolves pipelines, caching recent ones by the bytes of their messages.

    Args:
        registry: The available passes.
        named: Named pipelines.
    """

    def __init__(self, registry: Registry, named: NamedPipelines) -> None:
        self._registry = registry
        self._named = named
        self._known: LRUCache[bytes, PipelineName] = LRUCache(_MAX_REMEMBERED)
        # Large requests are resolved in a separate thread.
        self._lock = threading.Lock()

    def expand(self, specs: Sequence[pb.PassSpec]) -> list[pb.PassSpec]:
        """The passes of a request for a job, with pipeline names replaced by their passes.

        Only looks names up: `resolve` has validated the list, once for all requests that have it,
        and keeps a digest of it, not the message. The worker, another process, validates its own.
        """
        return self._named.expand(specs)

    def resolve(
        self, specs: Sequence[pb.PassSpec], *, eager: bool = False, verify: bool = False
    ) -> PipelineName:
        """Resolve the pipeline of a request.

        Args:
            specs: Its passes.
            eager: Whether they run on eager modules.
            verify: Whether results are compared before and after each pass.

        Raises:
            InvalidRequestError: A pass or an option is unknown or has the wrong type.
        """
        modes = b"eager" * eager + _VERIFY * verify
        # Its digest, because rewrites may have megabytes, and cache entries are kept.
        written = hashlib.sha256(modes)
        for spec in specs:
            data = spec.SerializeToString(deterministic=True)
            written.update(len(data).to_bytes(8, "little") + data)
        place = written.digest()
        with self._lock:
            name: PipelineName | None = self._known.get(place)
        if name is None:
            name = self._resolve(specs, modes)
            if len(name.spelling) <= MAX_REMEMBERED:
                with self._lock:
                    self._known[place] = name
        return name

    def _resolve(self, specs: Sequence[pb.PassSpec], modes: bytes) -> PipelineName:
        try:
            pipeline = pipeline_of(self._registry, self._named.expand(specs))
        except PassError as error:
            raise InvalidRequestError.of_field(
                error.field or "passes", error.description
            ) from error
        if len(pipeline.spelling) > MAX_SPELLING:
            raise InvalidRequestError.of_field(
                "passes",
                f"have {len(pipeline.spelling)} characters when spelled out; at most "
                f"{MAX_SPELLING} are allowed",
            )
        fingerprint = pipeline.fingerprint
        if modes:
            fingerprint = hashlib.sha256(modes + fingerprint).digest()
        return PipelineName(fingerprint, pipeline.spelling)

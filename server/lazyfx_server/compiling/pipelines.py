"""Pass lists, read once each."""

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

_MAX_REMEMBERED = 1024
MAX_REMEMBERED = 8192
"""Longest spelling, in characters, of a pipeline that is remembered."""


@dataclass(frozen=True, slots=True)
class PipelineName:
    """What a pipeline is in a key and to people.

    Attributes:
        fingerprint: 32 bytes that change whenever results may.
        spelling: Canonical text.
    """

    fingerprint: bytes
    spelling: str


class Pipelines:
    """Names pipelines, remembering recent ones by the bytes of their messages.

    Args:
        registry: The passes that there are.
        named: Pipelines that have names.
    """

    def __init__(self, registry: Registry, named: NamedPipelines) -> None:
        self._registry = registry
        self._named = named
        self._known: LRUCache[bytes, PipelineName] = LRUCache(_MAX_REMEMBERED)
        # Large requests are read in a thread of their own.
        self._lock = threading.Lock()

    def expand(self, specs: Sequence[pb.PassSpec]) -> list[pb.PassSpec]:
        """The passes of a request for a job, names of pipelines replaced by passes.

        Only looks names up: `resolve` has read the list, once for all requests that have it, and
        remembers what it is called and no message. The worker, another process, reads its own.
        """
        return self._named.expand(specs)

    def resolve(
        self, specs: Sequence[pb.PassSpec], *, eager: bool = False, verify: bool = False
    ) -> PipelineName:
        """Name the pipeline of a request.

        Args:
            specs: Its passes.
            eager: They run on eager modules.
            verify: Their results are compared with those before them.

        Raises:
            InvalidRequestError: A pass or an option is unknown or has the wrong type.
        """
        modes = b"eager" * eager + b"verify" * verify
        # Its digest: rewrites may hold megabytes, and what is remembered is kept.
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

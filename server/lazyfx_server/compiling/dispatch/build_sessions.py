"""The builds of one native job: what it may link, what it may ship, and what they cost."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from google.protobuf.message import DecodeError

from lazyfx_server.compiling.kernels.kernel_flights import Elsewhere, Provided
from lazyfx_server.execution import CallRefused
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)

_MAX_OBJECT_BYTES: Final = 512 << 20
# A kernel has some 50 KB. Beyond this, a job's kernels are its own: it cannot fill the store.
_MAX_SHARED_BYTES: Final = 128 << 20
_FROM_CPP: Final = (worker.BUILD_KIND_OBJECT, worker.BUILD_KIND_LIBRARY)

Build: TypeAlias = "Callable[[worker.BuildRequest, list[bytes], BuildSession], Awaitable[Provided]]"
"""Builds a request from the objects that it links, for a session."""


class BuildSession:
    """The builds of one native job.

    Args:
        build: Runs one build.
        scope: Whose kernels it uses and adds to; None for none but its own.
        elsewhere: More kernels of this scope.

    Attributes:
        scope: As given.
        elsewhere: As given.
        kernels: What became of the C++ sources that the job has asked for.
    """

    def __init__(
        self, build: Build, scope: bytes | None = None, elsewhere: Elsewhere | None = None
    ) -> None:
        self._build = build
        self.scope = scope
        self.elsewhere = elsewhere
        self.kernels = worker.KernelCounts()
        self._objects: dict[bytes, bytes] = {}
        self._libraries: set[bytes] = set()
        self._bytes = 0
        self._shared_bytes = 0
        self._warned = False

    async def __call__(self, question: bytes) -> bytes:
        """Answer one call.

        Raises:
            CallRefused: It is not a valid build request.
        """
        try:
            request = worker.BuildRequest.FromString(question)
        except DecodeError as error:
            raise CallRefused("the request cannot be parsed") from error
        if self._bytes > _MAX_OBJECT_BYTES:
            raise self._too_large()
        missing = [key for key in request.objects if key not in self._objects]
        if missing:
            raise CallRefused("an object to link was not built for this job")
        objects = [self._objects[key] for key in request.objects]
        try:
            provided = await self._build(request, objects, self)
        except CallRefused as refusal:
            if not self._warned:
                self._warned = True
                _log.warning("refused a compile that a native job requested: %s", refusal)
            raise
        if request.kind in _FROM_CPP:
            self._count(provided)
        result = provided.result
        if request.kind in (worker.BUILD_KIND_OBJECT, worker.BUILD_KIND_DATA) and result.output:
            self._keep(result)
        elif result.output:
            self._libraries.add(hashlib.sha256(result.output).digest())
        return result.SerializeToString()

    def has_made(self, library: bytes) -> bool:
        """Whether these are the bytes of a library that was built for this job."""
        return hashlib.sha256(library).digest() in self._libraries

    def may_share(self, size: int) -> bool:
        """Whether the job may add this many bytes to what others find; counts them.

        Nothing more is shared once a job has reached its limit.
        """
        self._shared_bytes += size
        return self._shared_bytes <= _MAX_SHARED_BYTES

    def _count(self, provided: Provided) -> None:
        if provided.source in ("found", "joined"):
            self.kernels.known += 1
            self.kernels.saved_seconds += provided.seconds
        elif provided.source == "compiled":
            self.kernels.compiled += 1
            self.kernels.compile_seconds += provided.seconds

    def _keep(self, result: worker.BuildResult) -> None:
        if result.key in self._objects:
            return
        self._bytes += len(result.output)
        if self._bytes > _MAX_OBJECT_BYTES:
            raise self._too_large()
        self._objects[result.key] = result.output

    @staticmethod
    def _too_large() -> CallRefused:
        return CallRefused(f"the objects of one job have more than {_MAX_OBJECT_BYTES} bytes")

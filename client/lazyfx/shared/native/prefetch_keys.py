"""What is remembered of a job, and the key by which a client recognizes what is sent for it."""

from __future__ import annotations

import hashlib
from typing import Final

from lazyfx.shared.native.native_request import conditions_digest
from lazyfx.v1 import compiler_pb2 as pb

KEY_BYTES: Final = 32
"""Length of a key, and of the digest by which a client knows a job."""
MAX_JOBS: Final = 4
"""Digests of jobs in one request."""
MAX_ARTIFACTS: Final = 256
"""Artifacts that are remembered of a job."""
MAX_NATIVES: Final = 32
"""Different conditions of the artifacts of a job."""
MAX_COMPILE_BYTES: Final = 16 * 1024
"""Length of one remembered compile; one with longer passes is not remembered."""
MAX_JOB_BYTES: Final = 2**20
"""Length of all that is remembered of a job."""

_LABEL: Final = b"lazyfx prefetch key 1\0"
# Tags and lengths of an entry.
_OVERHEAD: Final = 64


def remembered_compile(request: pb.CompileRequest) -> pb.CompileRequest:
    """What a compile request asks for: graph, passes and modes, but not how it is asked."""
    return pb.CompileRequest(
        graph_digest=request.graph_digest,
        passes=request.passes,
        eager=request.eager,
        verify=request.verify,
    )


def prefetch_key(compile_request: pb.CompileRequest, native: pb.NativeRequest) -> bytes:
    """The key of a native artifact: whatever it depends on, except for the machine.

    Artifacts of different machines have one key; a client compares the machine as well.

    Args:
        compile_request: From `remembered_compile`.
        native: Under which conditions it was, or will be, compiled.
    """
    asked = compile_request.SerializeToString(deterministic=True)
    return hashlib.sha256(
        _LABEL + hashlib.sha256(asked).digest() + conditions_digest(native)
    ).digest()


class AskedArtifacts:
    """Native artifacts that a job asked for, each once, in order, up to the bounds.

    Attributes:
        record: The artifacts and their conditions.
        keys: From `prefetch_key`, of all of them.
    """

    def __init__(self) -> None:
        self.record = pb.RememberJobRequest()
        self.keys: set[bytes] = set()
        self._natives: dict[bytes, int] = {}
        self._bytes = 0

    def add(self, key: bytes, asked: pb.CompileRequest, native: pb.NativeRequest) -> bool:
        """Add one, and return whether it is new and fits.

        Args:
            key: From `prefetch_key`.
            asked: From `remembered_compile`.
            native: The conditions.
        """
        name = native.SerializeToString(deterministic=True)
        is_known = name in self._natives
        size = asked.ByteSize() + _OVERHEAD + (0 if is_known else len(name))
        if (
            key in self.keys
            or asked.ByteSize() > MAX_COMPILE_BYTES
            or len(self.record.artifacts) >= MAX_ARTIFACTS
            or (not is_known and len(self.record.natives) >= MAX_NATIVES)
            or self._bytes + size > MAX_JOB_BYTES
        ):
            return False
        if not is_known:
            self._natives[name] = len(self.record.natives)
            self.record.natives.append(native)
        self.record.artifacts.add(compile=asked, native=self._natives[name])
        self.keys.add(key)
        self._bytes += size
        return True

    def add_all(self, record: pb.RememberJobRequest) -> None:
        """Add those of a record, as far as they are new and fit."""
        for artifact in record.artifacts:
            asked, native = artifact.compile, record.natives[artifact.native]
            self.add(prefetch_key(asked, native), asked, native)

"""By what a client recognizes a native artifact that a server sends before it is asked for."""

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

"""Cache keys of objects and libraries: a hash of their sources, flags and compiler."""

from __future__ import annotations

import hashlib

from lazyfx_server.v1 import worker_pb2 as worker


def library_key(request: worker.BuildRequest, compiler: bytes) -> bytes:
    """SHA-256 over everything that the result of a request depends on.

    Objects are included by their own keys, so the key of a library covers every source.

    Args:
        request: Checked by `flags.check_build_request`.
        compiler: The digest of the toolchain (`toolchain_digest`). `Compiler.identity` suffices for
            what is used for one job on this machine only.
    """
    digest = hashlib.sha256(b"lazyfx build 1\0" + compiler)
    for part in (
        [str(request.kind).encode(), request.source, request.header.encode()],
        [flag.encode() for flag in request.flags],
        [library.encode() for library in request.libraries],
        list(request.objects),
    ):
        digest.update(len(part).to_bytes(8, "little"))
        for item in part:
            digest.update(len(item).to_bytes(8, "little") + item)
    return digest.digest()


def header_key(request: worker.BuildRequest, compiler: bytes) -> bytes:
    """SHA-256 that identifies a precompiled header: its name and flags."""
    precompiled = worker.BuildRequest(
        kind=worker.BUILD_KIND_HEADER, flags=request.flags, header=request.header
    )
    return library_key(precompiled, compiler)

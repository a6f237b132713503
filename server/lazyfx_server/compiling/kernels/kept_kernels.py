"""Leaves out of an artifact the kernels that its caller has."""

from __future__ import annotations

import hashlib

from lazyfx.shared.native.native_request import KEPT_PREFIX_BYTES
from lazyfx.v1 import compiler_pb2 as pb


def without_kept(data: bytes, kept: bytes | None) -> bytes:
    """A serialized NativeBundle, with digests in place of some libraries.

    Equal arguments give equal bytes, so that an interrupted download can be resumed.

    Args:
        data: A serialized NativeBundle, from the store.
        kept: The libraries to leave out, as `GetArtifactRequest.kept_kernels`; None for all.
    """
    step = KEPT_PREFIX_BYTES
    named = kept or b""
    prefixes = {named[at : at + step] for at in range(0, len(named), step)}
    bundle = pb.NativeBundle.FromString(data)
    for kernel in bundle.kernels:
        digest = hashlib.sha256(kernel.library).digest()
        if kept is None or digest[:step] in prefixes:
            kernel.digest = digest
            kernel.ClearField("library")
    return bundle.SerializeToString(deterministic=True)

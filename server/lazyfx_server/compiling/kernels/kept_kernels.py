"""Leaves out of an artifact the kernels that its caller has."""

from __future__ import annotations

import hashlib
from collections.abc import Set as AbstractSet

from lazyfx.v1 import compiler_pb2 as pb


def without_kept(data: bytes, kept: AbstractSet[bytes]) -> bytes:
    """A serialized NativeBundle, with digests in place of some libraries.

    Equal arguments give equal bytes, so that an interrupted download can be resumed.

    Args:
        data: A serialized NativeBundle, from the store.
        kept: SHA-256 of the libraries to leave out.
    """
    bundle = pb.NativeBundle.FromString(data)
    for kernel in bundle.kernels:
        digest = hashlib.sha256(kernel.library).digest()
        if digest in kept:
            kernel.digest = digest
            kernel.ClearField("library")
    return bundle.SerializeToString(deterministic=True)

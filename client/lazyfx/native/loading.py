"""A native artifact becomes something that can be called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from lazyfx.errors import ArtifactError
from lazyfx.native import kernels, torch_names
from lazyfx.native.requests import conditions_digest
from lazyfx.native.target import mismatch
from lazyfx.v1 import compiler_pb2 as pb


def read_bundle(data: bytes, request: pb.NativeRequest) -> pb.NativeBundle:
    """Read an artifact whose signature has been verified, and check that it is what was asked for.

    Raises:
        ArtifactError: It is damaged, or made for another machine.
    """
    try:
        bundle = pb.NativeBundle.FromString(data)
    except DecodeError as error:
        raise ArtifactError("the native artifact cannot be read") from error
    if bundle.conditions != conditions_digest(request):
        raise ArtifactError("the native artifact was made for other settings than these")
    if why := mismatch(bundle.target, request.target):
        raise ArtifactError(f"the native artifact does not run here: {why}")
    return bundle


def load(bundle: pb.NativeBundle) -> Callable[..., Any]:
    """Load an artifact, without a compiler.

    torch's part of it is a pickle: call this only with what `read_bundle` gave for an artifact
    whose signature has been verified.

    Returns:
        A function of the graph's inputs; autograd goes through it if the graph was compiled
        with gradients.

    Raises:
        ArtifactError: It cannot be loaded.
    """
    libraries = {kernel.source: kernel.library for kernel in bundle.kernels}
    try:
        with kernels.handed_over(libraries):
            # This unpickles. No stranger's bytes come here: the artifact's signature was verified
            # before `read_bundle`, and nobody but the server's signer can make one.
            loaded: Callable[..., Any] = torch_names.AOTCompiledArtifact.deserialize(
                bundle.compiled
            )
    except ArtifactError:
        raise
    except Exception as error:  # unpickling and dlopen raise errors of every kind
        raise ArtifactError(
            f"the native artifact cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return loaded

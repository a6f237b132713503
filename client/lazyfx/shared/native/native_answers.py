"""Reads native artifacts and checks them against the request."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError

from lazyfx.errors import ArtifactError
from lazyfx.shared.native.machine import mismatch
from lazyfx.shared.native.native_request import conditions_digest
from lazyfx.v1 import compiler_pb2 as pb

NativeArtifact = TypeVar("NativeArtifact", pb.NativeBundle, pb.AotPackage)


def read_artifact(
    kind: type[NativeArtifact], data: bytes, request: pb.NativeRequest
) -> NativeArtifact:
    """Read an artifact whose signature has been verified, and check that it matches the request.

    Args:
        kind: The expected kind.
        data: Its bytes.
        request: The request.

    Raises:
        ArtifactError: It is corrupt, or compiled for another machine or other settings.
    """
    try:
        made = kind.FromString(data)
    except DecodeError as error:
        raise ArtifactError("the native artifact cannot be read") from error
    if made.conditions != conditions_digest(request):
        raise ArtifactError("the native artifact was compiled for different settings")
    if why := mismatch(made.target, request.target):
        raise ArtifactError(f"the native artifact does not run here: {why}")
    return made

"""Checks the signed statement that comes with an artifact, once its signer is known."""

from __future__ import annotations

import time

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from lazyfx.errors import UntrustedArtifactError
from lazyfx.shared.signing_keys import SIGNED_PREFIX
from lazyfx.v1 import compiler_pb2 as pb

# Allowed clock difference between the two machines.
_CLOCK_SECONDS = 300.0


def kind_name(kind: int) -> str:
    """The name of an artifact kind in messages, logs and metrics, e.g. "inductor"."""
    return pb.ArtifactKind.Name(kind).removeprefix("ARTIFACT_KIND_").lower()  # type: ignore[arg-type]


def verified_statement(
    signature: pb.ArtifactSignature,
    public_key: bytes,
    *,
    digest: bytes,
    module_key: bytes,
    kind: int,
) -> pb.ArtifactStatement:
    """The statement about an artifact, which this key signed for these bytes, and which is valid.

    Args:
        signature: The signature.
        public_key: A trusted key, 32 bytes.
        digest: SHA-256 of the artifact's bytes.
        module_key: The module that was asked for.
        kind: The kind that was asked for.

    Raises:
        UntrustedArtifactError: It is not; the artifact must not be opened.
    """
    name = kind_name(kind)
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            signature.signature, SIGNED_PREFIX + signature.statement
        )
        statement = pb.ArtifactStatement.FromString(signature.statement)
    except (InvalidSignature, DecodeError, UnicodeDecodeError, ValueError) as error:
        raise UntrustedArtifactError(
            f"the signature of the {name} is invalid; it was not opened"
        ) from error
    if (statement.artifact.sha256, statement.module_key, statement.kind) != (
        digest,
        module_key,
        kind,
    ):
        raise UntrustedArtifactError(
            f"the signature of the {name} is for a different artifact; it was not opened"
        )
    now = time.time()
    if statement.expires.seconds + _CLOCK_SECONDS < now:
        raise UntrustedArtifactError(
            f"the signature of the {name} expired at {_date(statement.expires)}; it was not "
            "opened. Fetch it again, and compare the clocks"
        )
    if statement.created.seconds - _CLOCK_SECONDS > now:
        raise UntrustedArtifactError(
            f"the signature of the {name} is dated {_date(statement.created)}, in the future; "
            "it was not opened. Compare the clocks"
        )
    return statement


def _date(moment: Timestamp) -> str:
    try:
        return moment.ToJsonString()
    except ValueError:
        return f"second {moment.seconds}"

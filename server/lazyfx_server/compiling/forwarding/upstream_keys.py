"""The keys of the upstream, and the artifacts that they sign."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

import torch
from google.protobuf.message import DecodeError

from lazyfx.errors import UntrustedArtifactError
from lazyfx.shared.artifact_statements import verified_statement
from lazyfx.shared.signing_keys import KEY_BYTES, key_id
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.forwarding.answers import PAUSE_SECONDS
from lazyfx_server.compiling.forwarding.upstream_calls import UpstreamFailureError

# A server has a few: the one in use, and those that are being added or retired.
_MAX_KEYS: Final = 16


class UpstreamKeys:
    """The public keys that are trusted to sign the upstream's artifacts.

    Args:
        pinned: Those in the settings; None to trust those that it publishes on an authenticated
            connection.
    """

    def __init__(self, pinned: Sequence[bytes] | None) -> None:
        self._pinned = pinned is not None
        self._keys: dict[bytes, bytes] = {key_id(raw): raw for raw in pinned or ()}

    def knows(self, name: bytes) -> bool:
        """Whether it has a key of this id."""
        return name in self._keys

    def learn(self, info: pb.GetServerInfoResponse, *, is_new_connection: bool) -> None:
        """Adopt the keys that the upstream publishes, unless they are pinned.

        A server that replaces its key keeps the last one for a while, so known keys are replaced
        only by keys that include one of them; but after a new connection, it may be another server.
        """
        if self._pinned:
            return
        published = [key.public_key for key in info.verify_keys[:_MAX_KEYS]]
        named = {key_id(raw): raw for raw in published if len(raw) == KEY_BYTES}
        if is_new_connection or self._keys.keys() & named.keys():
            self._keys = named

    @property
    def verify_keys(self) -> list[pb.VerifyKey]:
        """The keys, for those who trust this server's word for them."""
        return [pb.VerifyKey(key_id=name, public_key=raw) for name, raw in self._keys.items()]

    def check(
        self,
        signature: pb.ArtifactSignature,
        *,
        digest: bytes,
        module_key: bytes,
        kind: int,
        pipeline: str,
    ) -> None:
        """Check what the upstream signed about an artifact that it sent.

        Args:
            signature: Its signature.
            digest: SHA-256 of the bytes that arrived.
            module_key: The module that was asked for.
            kind: The kind that was asked for.
            pipeline: Canonical spelling of the passes that were requested.

        Raises:
            UpstreamFailureError: It is not signed by a trusted key, or says something else: about
                other bytes, another module, or another version of torch, Python or lazyfx.
        """
        public_key = self._keys.get(signature.key_id)
        if public_key is None:
            raise UpstreamFailureError(
                f"it signs with key {signature.key_id.hex()[:16]}, which is not trusted; "
                "if its operator confirms a new key, add it to --upstream-verify-keys",
                "invalid",
            )
        try:
            statement = verified_statement(
                signature, public_key, digest=digest, module_key=module_key, kind=kind
            )
        except UntrustedArtifactError as error:
            raise UpstreamFailureError(str(error), "invalid") from error
        made = (statement.lazyfx_version, statement.torch_version, statement.python_version)
        ours = (version("lazyfx"), torch.__version__, platform.python_version())
        if made != ours:
            raise UpstreamFailureError(
                "it has other versions of lazyfx, torch or Python", "incompatible", PAUSE_SECONDS
            )
        if statement.pipeline != pipeline:
            raise UpstreamFailureError("it ran other passes than those requested", "invalid")

    def is_current(
        self, signature: pb.ArtifactSignature, digest: bytes, module_key: bytes, kind: int
    ) -> bool:
        """Whether callers can still rely on a stored signature of the upstream.

        Args:
            signature: The signature.
            digest: SHA-256 of the artifact's bytes.
            module_key: Key of its module.
            kind: Its kind.
        """
        public_key = self._keys.get(signature.key_id)
        if public_key is None:
            return False
        try:
            verified_statement(
                signature, public_key, digest=digest, module_key=module_key, kind=kind
            )
        except UntrustedArtifactError:
            return False
        return True


def has_expired(signature: pb.ArtifactSignature) -> bool:
    """Whether callers refuse a stored signature by its date, so that a new one is to be fetched."""
    try:
        statement = pb.ArtifactStatement.FromString(signature.statement)
    except (DecodeError, UnicodeDecodeError):
        return True
    return statement.expires.seconds < time.time()

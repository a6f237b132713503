"""Signed statements about artifacts: their kind and digest, the module, the builder, the lifetime.

Keys exist only in the server process and its key file. Workers are forked from a process that was
started before the file was read.

The file contains one or more Ed25519 private keys as PEM. The first one signs; the others are
published too, so that keys can be added and removed while clients still know another one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cachetools import LRUCache
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lazyfx.shared.signing_keys import SIGNED_PREFIX, key_id
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.security.secret_file import SecretFileError, read_private, write_private
from lazyfx_server.security.stat_fingerprint import StatFingerprint, known_fingerprint

_log = logging.getLogger(__name__)

_END = b"-----END PRIVATE KEY-----\n"
# A stored signature is reused until this fraction of its lifetime is left.
_RENEWED_AT = 0.5
# How far the clocks of servers that share a store may differ.
_CLOCK_SECONDS = 60.0
_MAX_REMEMBERED = 4096
_MAX_REMEMBERED_PASSING = 256


_Issued: TypeAlias = "LRUCache[tuple[object, ...], tuple[float, pb.ArtifactSignature]]"


@dataclass(frozen=True)
class StatementFacts:
    """The contents of a statement, except digest and dates.

    Attributes:
        module_key: Key of the compiled module, 32 bytes.
        kind: An ArtifactKind.
        tenant: Tag of the tenant, 32 bytes.
        pipeline: Canonical spelling of the passes.
    """

    module_key: bytes
    kind: pb.ArtifactKind.ValueType
    tenant: bytes
    pipeline: str


@dataclass(frozen=True)
class Builder:
    """The builder of artifacts: a server's name, and its versions."""

    name: str
    lazyfx_version: str
    torch_version: str
    python_version: str


class KeyRing:
    """The live private keys; the file is reloaded when it changes.

    Args:
        path: The key file; created with one new key and mode 0600 if missing. None keeps one new
            key in memory.

    Raises:
        SecretFileError: The file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: StatFingerprint | None = None
        self._keys: tuple[Ed25519PrivateKey, ...] = ()
        if path is None:
            self._keys = (Ed25519PrivateKey.generate(),)
            return
        if not path.exists():
            write_keys(path, [Ed25519PrivateKey.generate()], replace=False)
        self._read(path)

    @property
    def keys(self) -> tuple[Ed25519PrivateKey, ...]:
        """The keys; the first one signs.

        Raises:
            SecretFileError: The changed file is not a key file.
        """
        if self._path is not None and (looks := known_fingerprint(self._path)) != self._seen:
            if looks is None:
                # The keys in memory are still valid; a server keeps running without its store's
                # folder.
                self._seen = None
                _log.error("the key file %s is gone; using the key in memory", self._path)
            else:
                self._read(self._path)
        return self._keys

    def _read(self, path: Path) -> None:
        self._seen = known_fingerprint(path)
        self._keys = read_keys(path)


class Signer:
    """Signs artifacts and recognizes its own signatures.

    Args:
        ring: The live keys.
        builder: The builder in statements.
        lifetime: Seconds for which a statement is valid.
        clock: The time in seconds since 1970.
    """

    def __init__(
        self,
        ring: KeyRing,
        builder: Builder,
        lifetime: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._ring = ring
        self._builder = builder
        self._lifetime = lifetime
        # When each was made, and the signature.
        self._issued: _Issued = LRUCache(_MAX_REMEMBERED)
        self._passing: _Issued = LRUCache(_MAX_REMEMBERED_PASSING)
        self._recognized: LRUCache[tuple[bytes, bytes], bytes] = LRUCache(_MAX_REMEMBERED)

    @property
    def verify_keys(self) -> list[pb.VerifyKey]:
        """The public keys of the live keys; the first one signs."""
        found = (_public(key) for key in self._ring.keys)
        return [pb.VerifyKey(key_id=key_id(raw), public_key=raw) for raw in found]

    @property
    def builder(self) -> str:
        """The server's name in statements."""
        return self._builder.name

    def sign(
        self, digest: graph_pb2.Digest, facts: StatementFacts, *, passing: bool = False
    ) -> pb.ArtifactSignature:
        """State that these bytes are this artifact; a statement is reused until it is old.

        Args:
            digest: The bytes.
            facts: What they are.
            passing: They are made for one caller; many such do not push out other statements.
        """
        issued = self._passing if passing else self._issued
        key = self._ring.keys[0]
        place = (digest.sha256, facts, _public(key))
        now = self._clock()
        known = issued.get(place)
        # The clock may have been ahead.
        if known is not None and known[0] <= now < known[0] + self._lifetime * _RENEWED_AT:
            return known[1]
        statement = pb.ArtifactStatement(
            artifact=digest,
            module_key=facts.module_key,
            kind=facts.kind,
            tenant=facts.tenant,
            builder=self._builder.name,
            lazyfx_version=self._builder.lazyfx_version,
            torch_version=self._builder.torch_version,
            python_version=self._builder.python_version,
            pipeline=facts.pipeline,
        )
        statement.created.FromMilliseconds(int(now * 1000))
        signature = self._signed(key, statement, now)
        issued[place] = (now, signature)
        return signature

    def renewed(
        self, signature: pb.ArtifactSignature, digest: graph_pb2.Digest, facts: StatementFacts
    ) -> pb.ArtifactSignature | None:
        """A stored signature: unchanged, or renewed if it is old.

        Returns:
            None if no live key made it, or if it is about something else.
        """
        keys = self._ring.keys
        place = (signature.statement, signature.signature)
        signer = self._recognized.get(place)
        if signer is None:
            signer = next((_public(k) for k in keys if _holds(k, signature)), None)
            if signer is None:
                return None
            self._recognized[place] = signer
        elif signer not in map(_public, keys):
            return None
        statement = pb.ArtifactStatement.FromString(signature.statement)
        stated = StatementFacts(
            statement.module_key, statement.kind, statement.tenant, statement.pipeline
        )
        if stated != facts or statement.artifact.sha256 != digest.sha256:
            return None
        now = self._clock()
        left = statement.expires.ToSeconds() - now
        if statement.created.ToSeconds() > now + _CLOCK_SECONDS:
            # Made while a clock was ahead; no client accepts a statement from the future.
            statement.created.FromMilliseconds(int(now * 1000))
        elif signer == _public(keys[0]) and (
            self._lifetime * _RENEWED_AT < left <= self._lifetime + _CLOCK_SECONDS
        ):
            return signature
        return self._signed(keys[0], statement, now)

    def _signed(
        self, key: Ed25519PrivateKey, statement: pb.ArtifactStatement, now: float
    ) -> pb.ArtifactSignature:
        statement.expires.FromMilliseconds(int((now + self._lifetime) * 1000))
        data = statement.SerializeToString(deterministic=True)
        return pb.ArtifactSignature(
            statement=data, signature=key.sign(SIGNED_PREFIX + data), key_id=key_id(_public(key))
        )


def read_keys(path: Path) -> tuple[Ed25519PrivateKey, ...]:
    """Read a key file.

    Raises:
        SecretFileError: It is missing, others can read it, or it is not a key file.
    """
    text = read_private(path)
    keys = []
    for block in text.split(_END)[:-1]:
        try:
            key = serialization.load_pem_private_key(block + _END, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SecretFileError(f"{path} contains something that is not a private key") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SecretFileError(f"{path} contains a key that is not Ed25519")
        keys.append(key)
    if not keys:
        raise SecretFileError(
            f"{path} contains no private key; remove the file to create a new one"
        )
    return tuple(keys)


def write_keys(path: Path, keys: Sequence[Ed25519PrivateKey], *, replace: bool) -> None:
    """Write a key file; see `write_private`.

    Args:
        path: Where.
        keys: The keys; the first one signs.
        replace: Replace an existing file.

    Raises:
        SecretFileError: It cannot be written.
    """
    write_private(path, b"".join(_pem(key) for key in keys), replace=replace)


def rotate(path: Path) -> tuple[str, ...]:
    """Put a new key before the current signing key, which stays live; remove older keys.

    Returns:
        The public keys in hex, the new one first.

    Raises:
        SecretFileError: The file cannot be read or written.
    """
    before = read_keys(path)[:1] if path.exists() else ()
    keys = (Ed25519PrivateKey.generate(), *before)
    write_keys(path, keys, replace=True)
    return tuple(_public(key).hex() for key in keys)


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _holds(key: Ed25519PrivateKey, signature: pb.ArtifactSignature) -> bool:
    try:
        key.public_key().verify(signature.signature, SIGNED_PREFIX + signature.statement)
    except InvalidSignature:
        return False
    return True

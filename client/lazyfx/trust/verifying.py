"""Verifies the signatures of artifacts before they are opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone

from lazyfx.errors import LazyfxError, UntrustedArtifactError, UntrustedServerError
from lazyfx.flows import Flow
from lazyfx.shared.artifact_statements import kind_name, verified_statement
from lazyfx.shared.printable import make_printable
from lazyfx.shared.signing_keys import KEY_BYTES, fingerprint, key_id
from lazyfx.v1 import compiler_pb2 as pb

# Data that is decoded by tables and cannot contain code.
DATA_KINDS = frozenset({pb.ARTIFACT_KIND_GRAPH, pb.ARTIFACT_KIND_CONSTANT})


@dataclass(frozen=True)
class Provenance:
    """Who built an artifact, from what and when, as signed and verified.

    Attributes:
        kind: The kind of the signed artifact, e.g. "graph" or "code".
        digest: Hex of the SHA-256 of its bytes.
        module_key: Hex of the key of the compiled module.
        pipeline: Canonical spelling of the passes that ran.
        builder: Name of the server.
        lazyfx_version: The server's version of lazyfx.
        torch_version: The server's version of torch.
        python_version: The server's version of Python.
        created: When it was built.
        expires: When the signature expires.
        public_key: Hex of the key that verified the signature.
        tenant: Hex of the server's tag of the tenant that it was built for; not the name.
        made_into: The format to which this client converted the signed graph, e.g. "pickle"; "" if
            the server built the artifact itself. All other fields describe the graph: the converted
            file is not signed.
    """

    kind: str
    digest: str
    module_key: str
    pipeline: str
    builder: str
    lazyfx_version: str
    torch_version: str
    python_version: str
    created: datetime
    expires: datetime
    public_key: str
    tenant: str = ""
    made_into: str = ""


class Verifier:
    """Verifies signatures with pinned keys, or with keys from a trusted connection.

    Args:
        pinned: Public keys in hex. If None, the keys that the server publishes at first use are
            trusted, if the connection is.
        address: Address of the server or its replicas, for messages.
        untrusted: The address whose server is neither on this machine nor authenticated by TLS, if
            there is one: replicas are trusted as little as the least of them.
        ask: Fetches the server's keys.

    Raises:
        LazyfxError: A key is malformed.
    """

    def __init__(
        self,
        pinned: Iterable[str] | None,
        *,
        address: str,
        untrusted: str | None,
        ask: Callable[[], Flow[pb.GetServerInfoResponse]],
    ) -> None:
        self._pinned = pinned is not None
        self._address = address
        self._untrusted = untrusted
        self._is_checked = False
        self._ask = ask
        self._keys = {key_id(raw): raw for raw in map(_read_key, pinned or ())}
        if self._pinned and not self._keys:
            raise LazyfxError("verify_keys is empty; omit it, or name at least one key")

    @property
    def has_pinned_keys(self) -> bool:
        """Whether everything must be signed with keys known in advance."""
        return self._pinned

    def require_trusted(self) -> Flow[None]:
        """Check, before the server builds anything, that artifacts it signs would be opened.

        Raises:
            UntrustedServerError: They would not; says what to do.
            ServiceError: The server does not answer.
        """
        if self._is_checked:
            return
        self.require_trusted_connection()
        if self._pinned:
            self._require_pinned((yield from self._ask()))
        self._is_checked = True

    def require_trusted_connection(self) -> None:
        """Check what can be checked of that without asking the server.

        Raises:
            UntrustedServerError: No artifact of this server would be opened.
        """
        if not self._pinned and self._untrusted:
            raise UntrustedServerError(self._unauthenticated())

    def introduce(self, info: pb.GetServerInfoResponse) -> None:
        """Take what the server says of itself as if it had been asked for it.

        Raises:
            UntrustedServerError: Artifacts that it signs would not be opened.
        """
        self.require_trusted_connection()
        if self._pinned:
            self._require_pinned(info)
        else:
            self._take_keys(info)
        self._is_checked = True

    def _require_pinned(self, info: pb.GetServerInfoResponse) -> None:
        in_use = info.verify_keys[0].public_key if info.verify_keys else b""
        if in_use not in self._keys.values():
            raise UntrustedServerError(self._changed(in_use))

    def _unauthenticated(self) -> str:
        return (
            "artifacts of this server can contain executable code, and this plaintext connection "
            f"does not authenticate {self._untrusted}; run `lazyfx trust {self._untrusted}` once "
            "and compare the fingerprint with the one in the server's log, or pin its key "
            "(LAZYFX_VERIFY_KEYS, verify_keys=), or use TLS (LAZYFX_CA, tls=)"
        )

    def _changed(self, in_use: bytes) -> str:
        trusted = ", ".join(fingerprint(raw) for raw in self._keys.values())
        now = f"key {fingerprint(in_use)}" if len(in_use) == KEY_BYTES else "no key"
        return (
            f"THE KEY OF {self._address} IS NOT THE ONE THAT YOU TRUST: it signs with {now}, and "
            f"the trusted key is {trusted}. Either the server has a new key, or another "
            "server answers at this address; no artifact was requested. If its operator confirms "
            f"the new fingerprint, run `lazyfx trust --replace {self._address}`, or change "
            "LAZYFX_VERIFY_KEYS"
        )

    def check(
        self, request: pb.GetArtifactRequest, trailer: pb.ArtifactTrailer
    ) -> Flow[Provenance | None]:
        """Verify a received artifact whose bytes match the digest in its trailer.

        Returns:
            Its provenance; None for graph data if no key is pinned, which needs no signature.

        Raises:
            UntrustedArtifactError: No trusted key signed this artifact; it must not be opened.
        """
        if request.kind in DATA_KINDS and not self._pinned:
            return None
        return (yield from self.verify_provenance(request, trailer))

    def verify_provenance(
        self, request: pb.GetArtifactRequest, trailer: pb.ArtifactTrailer
    ) -> Flow[Provenance]:
        """Verify a signature, whatever the kind of artifact; see `check`."""
        name = kind_name(request.kind)
        signature = trailer.signature
        if not signature.signature:
            raise UntrustedArtifactError(f"the {name} is not signed and was not opened")
        public_key = yield from self._key(signature.key_id, name)
        statement = verified_statement(
            signature,
            public_key,
            digest=trailer.digest.sha256,
            module_key=request.module_key,
            kind=request.kind,
        )
        make_printable(statement)
        try:
            return _provenance(statement, name, public_key)
        except (ValueError, OverflowError) as error:  # dates outside the range of datetime
            raise UntrustedArtifactError(
                f"the signature of the {name} has invalid dates; it was not opened"
            ) from error

    def _key(self, wanted: bytes, name: str) -> Flow[bytes]:
        if wanted not in self._keys and not self._pinned:
            yield from self._fetch_keys(name)
        found = self._keys.get(wanted)
        if found is None:
            known = "pinned key" if self._pinned else "trusted key of the server"
            raise UntrustedArtifactError(
                f"the {name} is signed with key {wanted.hex()[:16]}, which is not a {known}; "
                "it was not opened. If the server has a new key, "
                + ("pin it too" if self._pinned else "reconnect")
                + ("; replicas must share their signing keys" if "," in self._address else "")
            )
        return found

    def _fetch_keys(self, name: str) -> Flow[None]:
        """Fetch the keys that the server publishes: at first use, or to add to a known one."""
        if self._untrusted:
            raise UntrustedServerError(f"the {name} was not opened: {self._unauthenticated()}")
        self._take_keys((yield from self._ask()))

    def _take_keys(self, info: pb.GetServerInfoResponse) -> None:
        published = [key.public_key for key in info.verify_keys]
        named = {key_id(raw): raw for raw in published if len(raw) == KEY_BYTES}
        if not self._keys or self._keys.keys() & named.keys():
            self._keys = named


def _read_key(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text.strip())
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise LazyfxError(
            f"{text[:80]!r} is not a public key: 64 hex digits, as `lazyfx keys` prints"
        )
    return raw


def _provenance(statement: pb.ArtifactStatement, name: str, public_key: bytes) -> Provenance:
    return Provenance(
        kind=name,
        digest=statement.artifact.sha256.hex(),
        module_key=statement.module_key.hex(),
        pipeline=statement.pipeline,
        builder=statement.builder,
        lazyfx_version=statement.lazyfx_version,
        torch_version=statement.torch_version,
        python_version=statement.python_version,
        created=statement.created.ToDatetime(timezone.utc),
        expires=statement.expires.ToDatetime(timezone.utc),
        public_key=public_key.hex(),
        tenant=statement.tenant.hex(),
    )

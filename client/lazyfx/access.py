"""Credentials of a client, and which servers it trusts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lazyfx.addresses import is_loopback
from lazyfx.errors import LazyfxError
from lazyfx.known_servers import known_keys


@dataclass(frozen=True)
class Tls:
    """Encrypt the connection and authenticate the server.

    Attributes:
        ca: PEM file of the certificate authorities to trust; None for the system's.
        certificate: PEM file of this client's certificate chain, if the server requires one.
        key: PEM file of its private key.
        server_name: Name in the server's certificate, if it differs from the address.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None


@dataclass(frozen=True)
class Access:
    """Credentials and trust of a client; created by `access`.

    Attributes:
        token: Bearer token, sent with every call.
        tls: TLS configuration; None for plaintext.
        verify_keys: Public keys in hex that artifacts must be signed with; None for those that
            the user trusts (`lazyfx trust`).
    """

    token: str | None = None
    tls: Tls | None = None
    verify_keys: tuple[str, ...] | None = None

    def believes(self, address: str) -> bool:
        """Whether the connection authenticates the server (TLS or loopback)."""
        return self.tls is not None or is_loopback(address)

    def pinned_keys(self, address: str) -> tuple[str, ...] | None:
        """Public keys in hex that artifacts of this server must be signed with; None for any.

        Raises:
            LazyfxError: The file of trusted servers cannot be read; names the line.
        """
        return self.verify_keys if self.verify_keys is not None else known_keys(address) or None

    def metadata(self, address: str) -> tuple[tuple[str, str], ...]:
        """What goes with every call.

        Raises:
            LazyfxError: The token would be sent in plaintext.
        """
        if self.token is None:
            return ()
        if not self.believes(address):
            raise LazyfxError(
                f"the token would be sent to {address} in plaintext; "
                "connect with TLS: tls=True or tls=lazyfx.Tls(ca=...), or LAZYFX_CA"
            )
        return (("authorization", f"Bearer {self.token}"),)


def access(
    *,
    token: str | None = None,
    tls: Tls | bool | None = None,
    verify_keys: Sequence[str] | str | None = None,
) -> Access:
    """Read the arguments, with the environment for those that are missing.

    Args:
        token: Bearer token; else LAZYFX_TOKEN, or the file named by LAZYFX_TOKEN_FILE.
        tls: How to encrypt; True for TLS with the well-known authorities. Else LAZYFX_CA (a
            file, or "system"), LAZYFX_CLIENT_CERTIFICATE, LAZYFX_CLIENT_KEY and
            LAZYFX_SERVER_HOST.
        verify_keys: Public keys in hex, or several joined by commas; else LAZYFX_VERIFY_KEYS.

    Raises:
        LazyfxError: A file cannot be read.
    """
    keys = verify_keys if verify_keys is not None else _variable("VERIFY_KEYS")
    if isinstance(keys, str):
        keys = [key for key in keys.replace(",", " ").split() if key]
    if tls is None:
        tls = _tls_of_environment()
    elif isinstance(tls, bool):
        tls = Tls() if tls else None
    return Access(
        token=token or _token_of_environment(),
        tls=tls,
        verify_keys=None if keys is None else tuple(keys),
    )


def _variable(name: str) -> str | None:
    return os.environ.get(f"LAZYFX_{name}") or None


def _token_of_environment() -> str | None:
    if token := _variable("TOKEN"):
        return token
    if path := _variable("TOKEN_FILE"):
        return read_file(path).decode().strip()
    return None


def _tls_of_environment() -> Tls | None:
    ca, certificate = _variable("CA"), _variable("CLIENT_CERTIFICATE")
    if ca is None and certificate is None:
        return None
    return Tls(
        ca=None if ca == "system" else ca,
        certificate=certificate,
        key=_variable("CLIENT_KEY"),
        server_name=_variable("SERVER_HOST"),
    )


def read_file(path: str | Path) -> bytes:
    """The bytes of a file of certificates, keys or tokens.

    Raises:
        LazyfxError: It cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise LazyfxError(f"cannot read {path}: {error.strerror}") from error

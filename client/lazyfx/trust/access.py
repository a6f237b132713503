"""Credentials of a client, and which servers it trusts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lazyfx.errors import LazyfxError
from lazyfx.shared.addresses import is_loopback, split_addresses
from lazyfx.trust.credentials import check_certificates, checked_keys, checked_token, read_file
from lazyfx.trust.known_servers import known_keys


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

    def untrusted_address(self, addresses: str) -> str | None:
        """The first address whose connection does not authenticate the server (TLS or loopback).

        Several addresses are trusted as little as the least of them: any of them may answer.
        """
        if self.tls is not None:
            return None
        return next((one for one in split_addresses(addresses) if not is_loopback(one)), None)

    def pinned_keys(self, addresses: str) -> tuple[str, ...] | None:
        """Public keys in hex that artifacts of these servers must be signed with; None for any.

        Replicas share their signing keys, so what the user trusts for one of them must have signed
        the artifacts of each.

        Raises:
            LazyfxError: The file of trusted servers cannot be read; names the line.
        """
        if self.verify_keys is not None:
            return self.verify_keys
        known = (key for one in split_addresses(addresses) for key in known_keys(one))
        return tuple(dict.fromkeys(known)) or None

    def metadata(self, addresses: str) -> tuple[tuple[str, str], ...]:
        """The metadata of every call.

        Raises:
            LazyfxError: The token would be sent in plaintext.
        """
        if self.token is None:
            return ()
        if untrusted := self.untrusted_address(addresses):
            raise LazyfxError(
                f"the token would be sent to {untrusted} in plaintext; "
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
        LazyfxError: A file cannot be read, or an argument is invalid; names it.
    """
    keys = verify_keys if verify_keys is not None else _variable("VERIFY_KEYS")
    if isinstance(keys, str):
        keys = [key for key in keys.replace(",", " ").split() if key]
    if tls is None:
        tls = _tls_from_environment()
    elif isinstance(tls, bool):
        tls = Tls() if tls else None
    elif not isinstance(tls, Tls):
        raise LazyfxError(f"tls must be True or lazyfx.Tls(ca=...), not {tls!r}")
    if tls is not None:
        check_certificates(tls.ca, tls.certificate, tls.key)
    return Access(
        token=_token_from_environment() if token is None else checked_token(token, "token"),
        tls=tls,
        verify_keys=None if keys is None else checked_keys(keys),
    )


def _variable(name: str) -> str | None:
    return os.environ.get(f"LAZYFX_{name}") or None


def _token_from_environment() -> str | None:
    if token := _variable("TOKEN"):
        return checked_token(token, "LAZYFX_TOKEN")
    if path := _variable("TOKEN_FILE"):
        held = read_file(path, "LAZYFX_TOKEN_FILE")
        return checked_token(held, f"LAZYFX_TOKEN_FILE: {path}")
    return None


def _tls_from_environment() -> Tls | None:
    ca, certificate, key = _variable("CA"), _variable("CLIENT_CERTIFICATE"), _variable("CLIENT_KEY")
    if ca is None and certificate is None and key is None:
        return None
    return Tls(
        ca=None if ca == "system" else ca,
        certificate=certificate,
        key=key,
        server_name=_variable("SERVER_HOST"),
    )

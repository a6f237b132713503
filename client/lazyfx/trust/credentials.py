"""Checks tokens, certificates and keys before gRPC gets them.

gRPC aborts the process if a certificate has no key, and raises its own errors for a token with a
line feed.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lazyfx.errors import LazyfxError

_KEY: Final = re.compile(r"[0-9a-fA-F]{64}")
_MAX_SHOWN: Final = 80


def read_file(path: str | Path, field: str) -> bytes:
    """Read a file of certificates, keys or tokens.

    Args:
        path: The file.
        field: The argument that names it.

    Raises:
        LazyfxError: It cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise LazyfxError(f"{field}: cannot read {path}: {error.strerror}") from error


def checked_token(token: object, field: str) -> str:
    """A bearer token without surrounding whitespace.

    Args:
        token: A string, or the bytes of a file.
        field: Its source; errors show this and never the token.

    Raises:
        LazyfxError: It is empty, or has invalid characters.
    """
    text = token.decode("latin-1") if isinstance(token, bytes) else token
    if not isinstance(text, str):
        raise LazyfxError(f"{field} must be a string, not an object of type {type(token).__name__}")
    text = text.strip()
    if not text:
        raise LazyfxError(f"{field} is empty; `lazyfx token` on the server prints a token")
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise LazyfxError(
            f"{field} contains characters that are not allowed in tokens; copy the output of "
            f"`lazyfx token` again"
        )
    return text


def checked_keys(keys: Iterable[str]) -> tuple[str, ...]:
    """Check public keys in hex.

    Raises:
        LazyfxError: One is not a public key.
    """
    found = tuple(keys)
    for key in found:
        if not (isinstance(key, str) and _KEY.fullmatch(key)):
            raise LazyfxError(
                "verify_keys (LAZYFX_VERIFY_KEYS) must be public keys of 64 hex digits, as printed "
                f"by `lazyfx keys`, not {str(key)[:_MAX_SHOWN]!r}"
            )
    return found


def check_certificates(
    ca: str | Path | None, certificate: str | Path | None, key: str | Path | None
) -> None:
    """Read and check the files of a TLS configuration.

    Raises:
        LazyfxError: A file cannot be read or is not PEM, or a certificate and its key do not match;
            names the argument and the variable.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is not None:
        read_file(ca, "Tls(ca=...) (LAZYFX_CA)")
        try:
            context.load_verify_locations(str(ca))
        except (OSError, ValueError) as error:
            raise LazyfxError(
                f"Tls(ca=...) (LAZYFX_CA): {ca} contains no certificates in PEM format"
            ) from error
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise LazyfxError(
            "a certificate requires its key, and vice versa: Tls(certificate=..., key=...) "
            "(LAZYFX_CLIENT_CERTIFICATE, LAZYFX_CLIENT_KEY)"
        )
    read_file(certificate, "Tls(certificate=...) (LAZYFX_CLIENT_CERTIFICATE)")
    read_file(key, "Tls(key=...) (LAZYFX_CLIENT_KEY)")
    try:
        context.load_cert_chain(str(certificate), str(key), password=b"")
    except (OSError, ValueError) as error:
        raise LazyfxError(
            f"Tls(certificate=..., key=...) (LAZYFX_CLIENT_CERTIFICATE, LAZYFX_CLIENT_KEY): "
            f"{certificate} and {key} are not a certificate in PEM format and its private key"
        ) from error

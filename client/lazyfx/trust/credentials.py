"""Tokens, certificates and keys, looked at before gRPC is given them.

gRPC ends the process where a certificate comes without its key, and raises errors of its own for
a token with a line feed in it.
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
    """The bytes of a file of certificates, keys or tokens.

    Args:
        path: The file.
        field: What it was given for.

    Raises:
        LazyfxError: It cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise LazyfxError(f"{field}: cannot read {path}: {error.strerror}") from error


def checked_token(token: object, field: str) -> str:
    """A bearer token without white space around it.

    Args:
        token: Text, or the bytes of a file.
        field: Where it is from; errors name it and never the token.

    Raises:
        LazyfxError: It is empty, or has characters that no token has.
    """
    text = token.decode("latin-1") if isinstance(token, bytes) else token
    if not isinstance(text, str):
        raise LazyfxError(f"{field} takes text, not an object of type {type(token).__name__}")
    text = text.strip()
    if not text:
        raise LazyfxError(f"{field} is empty; `lazyfx token` on the server's side prints a token")
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise LazyfxError(
            f"{field} has characters that no token has; copy what `lazyfx token` printed again"
        )
    return text


def checked_keys(keys: Iterable[str]) -> tuple[str, ...]:
    """Public keys in hex.

    Raises:
        LazyfxError: One is something else.
    """
    found = tuple(keys)
    for key in found:
        if not (isinstance(key, str) and _KEY.fullmatch(key)):
            raise LazyfxError(
                "verify_keys (LAZYFX_VERIFY_KEYS) takes public keys of 64 hex digits, as `lazyfx "
                f"keys` prints them, not {str(key)[:_MAX_SHOWN]!r}"
            )
    return found


def check_certificates(
    ca: str | Path | None, certificate: str | Path | None, key: str | Path | None
) -> None:
    """Read the files of a TLS configuration, as they will be used.

    Raises:
        LazyfxError: One cannot be read or is not PEM, or a certificate and its key do not go
            together; names the argument and the variable.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is not None:
        read_file(ca, "Tls(ca=...) (LAZYFX_CA)")
        try:
            context.load_verify_locations(str(ca))
        except (OSError, ValueError) as error:
            raise LazyfxError(
                f"Tls(ca=...) (LAZYFX_CA): {ca} holds no certificates in PEM format"
            ) from error
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise LazyfxError(
            "a certificate and its key go together: Tls(certificate=..., key=...) "
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

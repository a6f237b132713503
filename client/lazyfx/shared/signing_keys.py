"""Identifiers of servers' signing keys, for people, signatures and messages."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

KEY_BYTES: Final = 32


def fingerprint(public_key: bytes) -> str:
    """The fingerprint that people compare: "SHA256:" and the digest in base64, like ssh."""
    digest = hashlib.sha256(public_key).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


SIGNED_PREFIX = b"lazyfx artifact statement 1\0"
"""Prefix of signed statements, for domain separation."""


def key_id(public_key: bytes) -> bytes:
    """The id of a public key in signatures: the first 8 bytes of its SHA-256."""
    return hashlib.sha256(public_key).digest()[:8]

"""Keys that servers sign with: how people, signatures and messages name one."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

KEY_BYTES: Final = 32


def fingerprint(public_key: bytes) -> str:
    """What people compare of a key: "SHA256:" and the digest in base64, as ssh shows it."""
    digest = hashlib.sha256(public_key).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


SIGNED_PREFIX = b"lazyfx artifact statement 1\0"
"""Stands before a statement when it is signed, so that a signature can mean nothing else."""


def key_id(public_key: bytes) -> bytes:
    """What a public key is called in signatures: the start of its SHA-256, 8 bytes."""
    return hashlib.sha256(public_key).digest()[:8]

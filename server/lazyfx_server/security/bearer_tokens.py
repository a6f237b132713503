"""Bearer tokens, stored as hashes in a file that may change while a server runs.

A line of the file: the token's id, the SHA-256 of the whole token in hex, the tenant. Lines
that start with # are comments. Tokens contain 32 random bytes, so a plain hash
cannot be reversed. Removing a line revokes its token.

A file that is empty, or does not end with a line feed, is considered half-written: the previous
tokens stay valid. To revoke all tokens, leave a comment in the file.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from pathlib import Path

from lazyfx_server.security.secret_file import read_regular
from lazyfx_server.security.stat_fingerprint import known_fingerprint

_log = logging.getLogger(__name__)

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
_TOKEN = re.compile(r"lazyfx_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_HASH = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{16}")
_MAX_BYTES = 64 * 2**20
_NOBODY = (bytes(32), "")


class TokenFileError(Exception):
    """A token file cannot be read or written."""


def is_tenant_name(text: str) -> bool:
    """Whether this is a valid tenant name."""
    return _TENANT.fullmatch(text) is not None


class TokenFile:
    """Maps tokens to tenants; the file is reloaded when it changes.

    Args:
        path: The file.

    Raises:
        TokenFileError: It cannot be read, or a line is malformed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = known_fingerprint(path)
        self._known = _read(path) or {}

    def tenant_of(self, token: str) -> str | None:
        """The tenant of this token, or None. Takes constant time."""
        self._refresh()
        match = _TOKEN.fullmatch(token)
        expected, tenant = self._known.get(match[1] if match else "", _NOBODY)
        same = hmac.compare_digest(hashlib.sha256(token.encode()).digest(), expected)
        return tenant if same else None

    def _refresh(self) -> None:
        looks = known_fingerprint(self._path)
        if looks == self._seen:
            return
        self._seen = looks
        try:
            known = _read(self._path)
        except TokenFileError as error:
            # A half-written file must neither admit a caller nor lock everyone out.
            _log.error("keeping the previous %d tokens: %s", len(self._known), error)
            return
        if known is None:
            _log.error("keeping the previous %d tokens: the token file is empty", len(self._known))
        else:
            self._known = known
            _log.info("the token file changed: %d tokens", len(self._known))


def add_token(path: Path, tenant: str) -> str:
    """Create a token and add its hash to the file, which is created if missing.

    Returns:
        The token; it is stored nowhere.

    Raises:
        TokenFileError: The file cannot be written, or the tenant name is invalid.
    """
    if not is_tenant_name(tenant):
        raise TokenFileError(
            f"{tenant[:100]!r} is not a valid tenant name: use letters, digits and . _ @ -, at "
            f"most 63"
        )
    name = secrets.token_hex(8)
    token = f"lazyfx_{name}_{secrets.token_urlsafe(32)}"
    line = f"{name} {hashlib.sha256(token.encode()).hexdigest()} {tenant}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
            file.write(line)
    except OSError as error:
        raise TokenFileError(f"cannot write {path}: {error.strerror or error}") from error
    return token


def _read(path: Path) -> dict[str, tuple[bytes, str]] | None:
    """The tokens of a file by their ids; None if the file is empty."""
    try:
        text = read_regular(path, _MAX_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenFileError(f"cannot read the token file: {error}") from error
    if not text.strip():
        return None
    if not text.endswith("\n"):
        raise TokenFileError(
            f"{path} does not end with a line feed: its last line may be incomplete"
        )
    known: dict[str, tuple[bytes, str]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if (
            len(fields) != 3
            or not _ID.fullmatch(fields[0])
            or not _HASH.fullmatch(fields[1])
            or not is_tenant_name(fields[2])
        ):
            raise TokenFileError(
                f"{path}, line {number}: expected 'id sha256 tenant', as written by `lazyfx token`"
            )
        known[fields[0]] = (bytes.fromhex(fields[1]), fields[2])
    return known

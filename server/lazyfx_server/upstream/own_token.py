"""The token under which this server asks the upstream for all of its callers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from lazyfx_server.security.stat_fingerprint import StatFingerprint, known_fingerprint

_log = logging.getLogger(__name__)

_MAX_BYTES: Final = 4096


class OwnToken:
    """A token in a file, which is reread when it changes.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be read, or holds no token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: StatFingerprint | None = known_fingerprint(path)
        self._token = read_token(path)

    def authorization(self) -> str:
        """The authorization header with the token."""
        fingerprint = known_fingerprint(self._path)
        if fingerprint != self._seen:
            self._seen = fingerprint
            try:
                self._token = read_token(self._path)
            except OSError as error:
                _log.error("keeping the previous token of --upstream-token: %s", error)
        return f"Bearer {self._token}"


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        OSError: The file cannot be read, or holds no token.
    """
    with path.open("rb") as file:
        token = file.read(_MAX_BYTES).decode("latin-1").strip()
    if not token or not (token.isascii() and token.isprintable() and " " not in token):
        raise OSError(f"{path} does not hold a token; `lazyfx token` on the upstream prints one")
    return token

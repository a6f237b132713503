"""The ledger's file: written atomically, by one server at a time."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from lazyfx_server.store.safe_folder import Folder, open_plain

_log = logging.getLogger(__name__)


# Far more than a server with many tenants ever needs.
_MAX_BYTES = 32 * 2**20
_MAX_WORDS = 8
_MAX_CHARACTERS = 256

Counts = Mapping[tuple[str, ...], float]


class LedgerFile:
    """The counts of a server, kept across restarts.

    If another server uses the file, counts are kept in memory only.

    Args:
        path: The file; its folder is created. A lock file is next to it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = Folder(path.parent)
        self._broken = False
        self._lock = _locked(path.with_suffix(".lock"))

    def read(self) -> dict[tuple[str, ...], float]:
        """The counts; none if the file is missing or cannot be read."""
        if self._lock is None:
            return {}
        try:
            data = self._folder.read(self._path.name, most=_MAX_BYTES)
            return {} if data is None else _counts(json.loads(data))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            _log.warning(
                "cannot read the ledger in %s; counts start from zero: %s", self._path, error
            )
            return {}

    def write(self, counts: Counts) -> bool:
        """Atomically replace the file; returns whether it succeeded."""
        if self._lock is None:
            return False
        part = f"{self._path.name}.part"
        rows = [[list(key), value] for key, value in sorted(counts.items())]
        data = json.dumps(rows, separators=(",", ":")).encode()
        try:
            self._folder.remove(part)  # left by a killed server; or a link, which is never followed
            with os.fdopen(self._folder.create(part), "wb") as file:
                file.write(data)
            self._folder.replace((part,), (self._path.name,))
        except OSError as error:
            if not self._broken:
                _log.warning("cannot write the ledger to %s: %s", self._path, error)
            self._broken = True
            return False
        if self._broken:
            _log.info("the ledger can be written again")
        self._broken = False
        return True

    def close(self) -> None:
        """Release the file for another server."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _counts(rows: object) -> dict[tuple[str, ...], float]:
    """Parse the counts in a file.

    Raises:
        TypeError, ValueError: It is malformed.
    """
    if not isinstance(rows, list):
        raise TypeError("not a list of counts")
    counts: dict[tuple[str, ...], float] = {}
    for row in rows:
        key, value = row
        good_key = isinstance(key, list) and 0 < len(key) <= _MAX_WORDS
        if not good_key or not all(
            isinstance(word, str) and len(word) <= _MAX_CHARACTERS for word in key
        ):
            raise ValueError("a count without a name")
        number = float(value) if isinstance(value, int | float) else math.nan
        if not math.isfinite(number) or number < 0:
            raise ValueError("a count that is not a number")
        counts[tuple(key)] = number
    return counts


def _locked(path: Path) -> IO[bytes] | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(open_plain(path, os.O_RDWR | os.O_CREAT), "r+b")
    except OSError as error:
        _log.warning("the ledger is kept in memory only: %s", error)
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        _log.warning("another server uses the ledger %s; this one is kept in memory only", path)
        return None
    return file

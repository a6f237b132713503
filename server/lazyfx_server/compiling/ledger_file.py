"""The ledger's file: written whole, by one server at a time."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO

_log = logging.getLogger(__name__)


class LedgerFile:
    """Counts between two starts of a server.

    A server that finds the file in use by another keeps its counts in memory only.

    Args:
        path: The file; its folder is made. A lock file stands beside it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = _locked(path.with_suffix(".lock"))

    def read(self) -> dict[tuple[str, ...], float]:
        """The counts; none when there is no file, or one that cannot be read."""
        if self._lock is None:
            return {}
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))
            return {tuple(map(str, key)): float(value) for key, value in rows}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            _log.warning("the ledger in %s cannot be read and begins anew: %s", self._path, error)
            return {}

    def write(self, counts: Mapping[tuple[str, ...], float]) -> bool:
        """Put counts in the file's place, whole or not at all; tells whether it did."""
        if self._lock is None:
            return False
        aside = self._path.with_suffix(".part")
        try:
            rows = [[list(key), value] for key, value in sorted(counts.items())]
            aside.write_text(json.dumps(rows, separators=(",", ":")), encoding="utf-8")
            aside.replace(self._path)
        except OSError as error:
            _log.warning("the ledger cannot be written to %s: %s", self._path, error)
            return False
        return True

    def close(self) -> None:
        """Let another server have the file."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _locked(path: Path) -> IO[bytes] | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    except OSError as error:
        _log.warning("the ledger is kept in memory only: %s", error)
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        _log.warning("another server keeps the ledger %s; this one's is kept in memory only", path)
        return None
    return file

"""Whether a file that is read again when it changes has changed."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

StatFingerprint: TypeAlias = "tuple[int, int, int]"


def stat_fingerprint(path: Path) -> StatFingerprint:
    """A value that changes when a file does: its time, its size and its inode.

    Raises:
        OSError: It cannot be looked at.
    """
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def known_fingerprint(path: Path) -> StatFingerprint | None:
    """The same; None for a file that cannot be looked at."""
    try:
        return stat_fingerprint(path)
    except OSError:
        return None

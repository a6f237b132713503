"""The folder of one server for native compiles; the next server removes it if this one cannot."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

_LOCK: Final = "lock"
_STALE_SECONDS: Final = 3600.0


class Area:
    """Folders for jobs, compiles and precompiled headers; gone when the server is.

    A lock tells whether the server lives that a folder belongs to: the kernel lets go of it when
    a process ends, however it ends.

    Args:
        base: Where servers of this user have their folders. Default: in the folder for
            temporary files.

    Raises:
        OSError: No folder can be made there, or others could write into it.
    """

    def __init__(self, base: Path | None = None) -> None:
        base = base or Path(tempfile.gettempdir()) / f"lazyfx-native-{os.geteuid()}"
        _make_private(base)
        _sweep(base)
        made = Path(tempfile.mkdtemp(prefix="new-", dir=base))
        self._lock = os.open(made / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.root = base / made.name.replace("new-", "server-", 1)
        made.rename(self.root)
        self.root.chmod(0o711)  # workers may be another user, who is told the names

    def folder(self, *names: str, owner: int | None = None) -> Path:
        """A folder within, made if it is not there; the last one belongs to `owner`."""
        path = self.root
        for name in names:
            path /= name
            path.mkdir(mode=0o711, exist_ok=True)
        if owner is not None:
            os.chown(path, owner, owner)
            path.chmod(0o700)
        return path

    def close(self) -> None:
        """Remove everything."""
        remove(self.root)
        os.close(self._lock)


def remove(path: Path) -> None:
    """Remove a folder and what workers have left in it, whatever that is."""
    try:
        shutil.rmtree(path, ignore_errors=True)
    except RecursionError:
        _log.warning("a worker left folders in folders too deep to remove: %s", path)


def _make_private(base: Path) -> None:
    base.mkdir(mode=0o711, exist_ok=True)
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise OSError(f"{base} is not a folder that only this user can write to; remove it")


def _sweep(base: Path) -> None:
    """Remove the folders of servers that have ended."""
    for path in base.iterdir():
        if path.name.startswith("server-") and _is_left_over(path):
            _log.info("removing what a server that ended left behind: %s", path)
            remove(path)
        elif path.name.startswith("new-") and time.time() - path.lstat().st_mtime > _STALE_SECONDS:
            remove(path)


def _is_left_over(path: Path) -> bool:
    try:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True

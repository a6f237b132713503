"""A folder for temporary files of one process; the next process removes it if this one cannot."""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

_LOCK: Final = "lock"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STALE_SECONDS: Final = 3600.0


class OwnedFolder:
    """A folder that is removed when its process ends.

    A lock shows whether the process that owns a folder is alive: the kernel releases it when the
    process exits, for whatever reason. So folders of killed processes are found and removed when
    the next one is created.

    Args:
        base: The parent of such folders of this user; created if missing.

    Attributes:
        path: The folder.

    Raises:
        OSError: No folder can be created there, or others could write to it.
    """

    def __init__(self, base: Path) -> None:
        _make_private(base)
        _sweep(base)
        made = Path(tempfile.mkdtemp(prefix="new-", dir=base))
        self._lock = os.open(made / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = base / made.name.replace("new-", "server-", 1)
        made.rename(self.path)

    def close(self) -> None:
        """Remove everything."""
        remove(self.path)
        os.close(self._lock)


def remove(path: Path) -> None:
    """Remove a folder and anything that workers left in it, without following links.

    The processes that wrote there have exited.
    """
    try:
        root = os.open(path, _FOLDER)
    except FileNotFoundError:
        return
    except OSError:
        _log.warning("what a worker left cannot be removed: %s", path)
        return
    try:
        _empty(root)
        path.rmdir()
    except OSError as error:
        _log.warning("what a worker left cannot be removed: %s: %s", path, error.strerror)
    finally:
        os.close(root)


def _empty(root: int) -> None:
    """Remove everything in an open folder.

    Nested folders are moved to the top before they are read: at any depth, only two are open at a
    time, and the number of steps is linear in the number of entries.
    """
    numbers = itertools.count()
    taken = set(os.listdir(root))
    folders = _remove_files(root, root, numbers, taken)
    while folders:
        name = folders.pop()
        _open_up(root, name)
        folder = os.open(name, _FOLDER, dir_fd=root)
        try:
            folders += _remove_files(folder, root, numbers, taken)
        finally:
            os.close(folder)
        os.rmdir(name, dir_fd=root)


def _remove_files(folder: int, root: int, numbers: Iterator[int], taken: set[str]) -> list[str]:
    """Remove all files of an open folder; move its subfolders to these names in `root`."""
    found = []
    with os.scandir(folder) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in names:
        if not is_folder:
            os.unlink(name, dir_fd=folder)
        elif folder == root:
            found.append(name)
        else:
            _open_up(folder, name)  # renaming a folder changes its ".." entry
            moved = next(new for number in numbers if (new := f"moved{number}") not in taken)
            os.rename(name, moved, src_dir_fd=folder, dst_dir_fd=root)
            found.append(moved)
    return found


def _open_up(parent: int, name: str) -> None:
    """Make a folder readable and writable whose creator removed the permissions."""
    folder = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if os.fstat(folder).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(f"/proc/self/fd/{folder}", 0o700)  # noqa: PTH101 - a link cannot come between
    finally:
        os.close(folder)


def _make_private(base: Path) -> None:
    base.mkdir(mode=0o711, exist_ok=True)
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise OSError(f"{base} is not a folder that only this user can write to; remove it")


def _sweep(base: Path) -> None:
    """Remove the folders of servers that have exited."""
    for path in base.iterdir():
        if path.name.startswith("server-") and _is_left_over(path):
            _log.info("removing the leftover folder of a stopped server: %s", path)
            remove(path)
        elif path.name.startswith("new-") and _is_old(path):
            remove(path)


def _is_old(path: Path) -> bool:
    """Whether it is old, or from the future: then it was left when the clock was ahead."""
    try:
        made = path.lstat().st_mtime
    except FileNotFoundError:  # it has just become a folder of a server
        return False
    return abs(time.time() - made) > _STALE_SECONDS


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

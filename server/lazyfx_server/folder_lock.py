"""One server per store folder, unless the servers share a store.

A file in the folder is locked with flock, which ends with the process however that dies. A server
without a shared store locks it alone; servers with one lock it together.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from pathlib import Path
from typing import Final

from lazyfx_server.store.safe_folder import open_plain

_NAME: Final = ".server.lock"
_POLL_SECONDS: Final = 0.1
_MAX_DIGITS: Final = 10

_log = logging.getLogger(__name__)


class FolderInUseError(OSError):
    """Another server uses the folder; says what to do."""


class FolderLock:
    """The use of a store folder by this process; released with it.

    Args:
        folder: The folder.
        is_shared: The servers of the folder share a store, through which they find what others put
            into the folder.
        wait_seconds: How long another server may take to end: one that drains while its successor
            starts.

    Raises:
        FolderInUseError: Another server uses the folder.
    """

    def __init__(self, folder: Path, *, is_shared: bool, wait_seconds: float) -> None:
        self._file: int | None = None
        operation = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        try:
            file = _open_locked(folder, operation, wait_seconds)
        except FolderInUseError:
            raise
        except OSError as error:
            # A folder that cannot be written to is read at most, so nothing can be mixed up there;
            # some network file systems have no locks.
            _log.warning("cannot tell whether another server uses the store: %s: %s", folder, error)
            return
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            if not is_shared:
                os.pwrite(file, str(os.getpid()).encode(), 0)
        self._file = file

    def release(self) -> None:
        """Let another server use the folder."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _open_locked(folder: Path, operation: int, wait_seconds: float) -> int:
    """The open lock file of a folder, locked.

    Raises:
        FolderInUseError: Another server has it, or something else stands in its place.
        OSError: It cannot be opened or locked.
    """
    path = folder / _NAME
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise FolderInUseError(
            "the lock of this folder is a link or not a regular file, so it cannot be told "
            f"whether another server uses the folder; remove it: {path}"
        )
    while True:
        file = open_plain(path, os.O_RDWR | os.O_CREAT)
        try:
            _lock(file, operation, folder, wait_seconds)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.lstat(path)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # it was removed meanwhile, and locks nobody out


def _lock(file: int, operation: int, folder: Path, wait_seconds: float) -> None:
    end = time.monotonic() + wait_seconds
    is_waiting = False
    while True:
        try:
            fcntl.flock(file, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise FolderInUseError(_refusal(file, operation, folder)) from None
        else:
            return
        if not is_waiting:
            is_waiting = True
            _log.warning(
                "waiting up to %g s for another server%s to end: it uses the store folder %s",
                wait_seconds,
                _process(file),
                folder,
            )
        time.sleep(_POLL_SECONDS)


def _refusal(file: int, operation: int, folder: Path) -> str:
    if operation == fcntl.LOCK_SH:
        return (
            f"a server without --store{_process(file)} uses this folder; stop it, or start it with "
            f"the same --store: {folder}"
        )
    return (
        f"another server{_process(file)} uses this folder; stop it, name another folder, or start "
        "both with one --store redis://HOST:PORT/DB, through which they share the folder: "
        f"{folder}"
    )


def _process(file: int) -> str:
    """Which process has the lock, as far as it says."""
    with contextlib.suppress(OSError):
        text = os.pread(file, _MAX_DIGITS, 0)
        if text.isdigit():
            return f" (process {text.decode()})"
    return ""

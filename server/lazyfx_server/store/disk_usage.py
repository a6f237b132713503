"""Usage counters of a folder, shared by all processes that use it."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lazyfx_server.store.safe_folder import open_plain

_COUNTERS: Final = struct.Struct("<qq")


class SharedUsage:
    """Two counters (entries, bytes) in a small file, and the lock that guards the folder.

    Kept in a file, so that two processes on one folder share one bound. A process that dies between
    a change and its count leaves them slightly off until the next `set`, which every scan of the
    folder does.

    Args:
        path: The file; created if missing.

    Raises:
        OSError: It cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._open()
        self._thread_lock = threading.Lock()  # flock does not distinguish threads

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the folder's lock: no other process or thread changes its contents.

        Yields:
            Whether the counters start over because their file was removed.
        """
        with self._thread_lock:
            fresh = self._lock()
            try:
                yield fresh
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def read(self) -> tuple[int, int]:
        """Entries and bytes; zero if the file was removed."""
        data = os.pread(self._file, _COUNTERS.size, 0) if self._is_current() else b""
        if len(data) < _COUNTERS.size:
            return 0, 0
        entries, size = _COUNTERS.unpack(data)
        return max(entries, 0), max(size, 0)

    def set(self, entries: int, size: int) -> None:
        """Overwrite both counters; the caller holds the lock."""
        os.pwrite(self._file, _COUNTERS.pack(entries, size), 0)

    def add(self, entries: int, size: int) -> None:
        """Add to both counters; the caller holds the lock."""
        before_entries, before_size = self.read()
        self.set(before_entries + entries, before_size + size)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _open(self) -> int:
        return open_plain(self._path, os.O_RDWR | os.O_CREAT)

    def _lock(self) -> bool:
        fresh = False
        while True:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if self._is_current():
                return fresh
            # The lock of a removed file protects nothing.
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            opened = self._open()
            os.close(self._file)
            self._file, fresh = opened, True

    def _is_current(self) -> bool:
        """Whether the open file is still the file in the folder."""
        try:
            there = self._path.lstat()
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self._file))

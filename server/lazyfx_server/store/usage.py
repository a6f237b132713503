"""How full a folder is, shared by all processes that use it."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_COUNTERS: Final = struct.Struct("<qq")


class SharedUsage:
    """Two counters (entries, bytes) in a small file, and the lock that guards the folder.

    Kept in a file, so that two processes on one folder keep one bound. A
    process that dies between a change and its count leaves them a little off
    until the next `set`, which every scan of the folder does.

    Args:
        path: The file; created when it is not there.

    Raises:
        OSError: It cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._thread_lock = threading.Lock()  # flock does not tell threads apart

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder's lock: no other process or thread changes what is in it."""
        with self._thread_lock:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def read(self) -> tuple[int, int]:
        """Entries and bytes."""
        data = os.pread(self._file, _COUNTERS.size, 0)
        if len(data) < _COUNTERS.size:
            return 0, 0
        entries, size = _COUNTERS.unpack(data)
        return max(entries, 0), max(size, 0)

    def set(self, entries: int, size: int) -> None:
        """Overwrites both counters; hold the lock."""
        os.pwrite(self._file, _COUNTERS.pack(entries, size), 0)

    def add(self, entries: int, size: int) -> None:
        """Changes both counters; hold the lock."""
        before_entries, before_size = self.read()
        self.set(before_entries + entries, before_size + size)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

"""Usage counters of a folder, shared by all processes that use it, and times of use."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
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


class UseClock:
    """Gives the time of each use, in nanoseconds since 1970; it never goes back.

    Files are evicted by their times of use. If the clock of the machine has been ahead for a while,
    files used then would look newer than all that are used later, and what is used most would be
    evicted first. So each use is later than every use before it.

    Args:
        clock: The clock of the machine.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._latest = 0
        self._lock = threading.Lock()

    def saw(self, moment: int) -> None:
        """Take note of the time of a use by another process, or before this one started."""
        with self._lock:
            self._latest = max(self._latest, moment)

    def now(self) -> int:
        """The time of a use that happens now: later than all others."""
        with self._lock:
            # File systems with coarse times keep microseconds.
            self._latest = max(self._clock(), self._latest + 1000)
            return self._latest

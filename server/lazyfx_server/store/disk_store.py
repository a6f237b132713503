"""The tier that survives restarts: one file per entry, least recently used evicted first.

::

    <root>/<space>/<first two digits>/<64 digits>   the values, nothing else in the files
    <root>/.staging/                                files being written
    <root>/.quarantine/<space>-<64 digits>          quarantined entries
    <root>/.usage                                   counters and lock; see disk_usage.py

Files are renamed into place atomically. Nothing is synced to disk, so a power cut may leave a torn
file: wrap the store in `VerifiedStore`. Several processes may share one folder. Its contents are
not trusted: links, FIFOs and devices are refused (see safe_folder.py), and a folder that was
removed is created again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from lazyfx_server.store.contract import (
    StoreError,
    StoreStats,
    TierName,
    checked_key,
)
from lazyfx_server.store.disk_usage import SharedUsage, UseClock
from lazyfx_server.store.safe_folder import Folder

LOW_WATERMARK: Final = 0.9
"""An eviction continues down to this fraction of the bound, so that evictions are rare."""

ORPHAN_SECONDS: Final = 600.0
"""A staging file that has not been written to for this long is orphaned."""

MAX_QUARANTINED: Final = 64
_THREADS: Final = 4
_STAGING: Final = ".staging"
_QUARANTINE: Final = ".quarantine"

T = TypeVar("T")


class DiskStore:
    """Stores values in files.

    Opening it scans the folder, which takes about 3 ms per thousand entries.

    Args:
        root: The folder; created if missing.
        limit_bytes: The bound on the total size of the files; never exceeded.

    Raises:
        StoreError: The folder cannot be used.
    """

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self._folder = Folder(root)
        self._uses = UseClock()
        self._limit = limit_bytes
        self._serial = itertools.count()
        self._evictions = 0
        try:
            for name in (_STAGING, _QUARANTINE):
                with self._folder.opened(name, create=True):
                    pass
            self._usage = SharedUsage(root / ".usage")
            self._sweep_staging()
            with self._usage.locked():
                self._evict(limit_bytes)
        except OSError as error:
            raise StoreError(f"the folder {root} cannot be used as a store: {error}") from error
        self._threads: ThreadPoolExecutor | None = ThreadPoolExecutor(
            _THREADS, thread_name_prefix="lazyfx-disk"
        )

    @property
    def name(self) -> TierName:
        """The tier's name."""
        return "disk"

    async def get(self, key: str) -> bytes | None:
        """See `Store.get`."""
        path = self._path(key)
        most = self._limit
        return await self._in_thread(
            lambda: self._folder.read(*path, most=most, used_at=self._uses.now())
        )

    async def put(self, key: str, value: bytes) -> None:
        """See `Store.put`."""
        path = self._path(key)
        await self._in_thread(lambda: self._write(path, value, only_new=False))

    async def put_if_absent(self, key: str, value: bytes) -> bool:
        """See `Store.put_if_absent`."""
        path = self._path(key)
        return await self._in_thread(lambda: self._write(path, value, only_new=True))

    async def contains(self, keys: Iterable[str]) -> set[str]:
        """See `Store.contains`."""
        paths = {key: self._path(key) for key in keys}
        folder = self._folder
        return await self._in_thread(
            lambda: {
                key for key, path in paths.items() if folder.touch(*path, used_at=self._uses.now())
            }
        )

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        path = self._path(key)
        await self._in_thread(lambda: self._remove(path))

    async def quarantine(self, key: str) -> None:
        """Move an entry to the quarantine folder, which keeps the newest few."""
        space, digits = checked_key(key)
        aside = (_QUARANTINE, f"{space}-{digits}")
        path = self._path(key)
        await self._in_thread(lambda: self._move_to_quarantine(path, aside))

    def stats(self) -> StoreStats:
        """See `Store.stats`."""
        entries, size = self._usage.read() if self._threads is not None else (0, 0)
        return StoreStats(
            entries=entries, bytes=size, limit_bytes=self._limit, evictions=self._evictions
        )

    def tiers(self) -> Mapping[str, StoreStats]:
        """See `Store.tiers`."""
        return {self.name: self.stats()}

    async def close(self) -> None:
        """Wait for running operations. The files stay."""
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.get_running_loop().run_in_executor(None, threads.shutdown)
            self._usage.close()

    @staticmethod
    def _path(key: str) -> tuple[str, ...]:
        space, digits = checked_key(key)
        return space, digits[:2], digits

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._threads is None:
            raise StoreError("the disk store is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except OSError as error:
            raise StoreError(f"disk store: {error}") from error

    def _write(self, path: tuple[str, ...], value: bytes, *, only_new: bool) -> bool:
        """Write an entry, and tell whether this one is there now."""
        size = len(value)
        if only_new and (size > self._limit or self._size(path) is not None):
            return False
        if size > self._limit:
            self._remove(path)
            return False
        staged = (_STAGING, f"{os.getpid()}-{time.time_ns()}-{next(self._serial)}")
        try:
            self._stage(staged, value)
            with self._locked():
                before = self._size(path)
                if only_new and before is not None:
                    self._folder.remove(*staged)
                    return False
                added = size - (before or 0)
                if self._usage.read()[1] + added > self._limit:
                    self._evict(int(self._limit * LOW_WATERMARK) - size)
                    before = self._size(path)
                    added = size - (before or 0)
                self._folder.replace(staged, path)
                self._usage.add(1 if before is None else 0, added)
        except OSError:
            with contextlib.suppress(OSError):
                self._folder.remove(*staged)
            raise
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._usage.locked() as fresh:
            if fresh:  # the folder or its counters were removed: count what is there
                self._evict(self._limit)
            yield

    def _stage(self, staged: tuple[str, ...], value: bytes) -> None:
        with open(self._folder.create(*staged), "wb", buffering=0) as file:  # noqa: PTH123
            view = memoryview(value)
            while view:
                view = view[file.write(view) :]
            moment = self._uses.now()
            os.utime(file.fileno(), ns=(moment, moment))

    def _size(self, path: tuple[str, ...]) -> int | None:
        status = self._folder.status(*path)
        return None if status is None else status.st_size

    def _remove(self, path: tuple[str, ...]) -> None:
        with self._locked():
            size = self._size(path)
            if size is not None:
                self._folder.remove(*path)
                self._usage.add(-1, -size)

    def _move_to_quarantine(self, path: tuple[str, ...], aside: tuple[str, ...]) -> None:
        with self._locked():
            size = self._size(path)
            if size is None:
                return
            self._folder.replace(path, aside)
            self._usage.add(-1, -size)
        self._folder.touch(*aside, used_at=self._uses.now())
        kept = sorted(self._folder.files(_QUARANTINE))
        for _, _, old in kept[:-MAX_QUARANTINED]:
            self._folder.remove(_QUARANTINE, old)

    def _evict(self, target: int) -> None:
        """Recount the folder, and remove the least recently used files down to `target`."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        entries = len(files)
        if files:
            self._uses.saw(files[-1][0])
        for _, size, path in files:
            if total <= max(target, 0):
                break
            self._folder.remove(*path)
            total -= size
            entries -= 1
            self._evictions += 1
        self._usage.set(entries, total)

    def _files(self) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        """Time of last use, size and path of every entry."""
        for space in self._folder.folders():
            for shard in self._folder.folders(space):
                for used, size, name in self._folder.files(space, shard):
                    yield used, size, (space, shard, name)

    def _sweep_staging(self) -> None:
        now = time.time_ns()
        for changed, _, name in list(self._folder.files(_STAGING)):
            # One from the future was left when the clock was ahead.
            if abs(now - changed) > ORPHAN_SECONDS * 1e9:
                self._folder.remove(_STAGING, name)

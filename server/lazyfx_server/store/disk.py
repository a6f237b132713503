"""The tier that survives restarts: one file an entry, least recently used removed first.

::

    <root>/<space>/<first two digits>/<64 digits>   the values, nothing else in the files
    <root>/.staging/                                files being written
    <root>/.quarantine/<space>-<64 digits>          entries that were put aside
    <root>/.usage                                   counters and lock; see usage.py

A file appears under its name whole or not at all. Nothing is synced to the
disk, so a power cut may leave a torn file: wrap the store in `VerifiedStore`.
Several processes may use one folder.
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

from lazyfx_server.store.base import StoreError, StoreStats, checked_key
from lazyfx_server.store.usage import SharedUsage

LOW_WATERMARK: Final = 0.9
"""An eviction goes on until this part of the bound is in use, so that the next one is far."""

ORPHAN_SECONDS: Final = 600.0
"""A staging file that has not been written to for so long has lost its writer."""

MAX_QUARANTINED: Final = 64

T = TypeVar("T")


class DiskStore:
    """Keeps values in files.

    Opening it scans the folder, which takes about 3 ms for a thousand entries.

    Args:
        root: The folder; created when it is not there.
        limit_bytes: The bound on the files' sizes; never exceeded.
        sync: Wait until the disk has each file before it appears.
        threads: Threads for file operations.

    Raises:
        StoreError: The folder cannot be used.
    """

    def __init__(
        self, root: Path, limit_bytes: int, *, sync: bool = False, threads: int = 4
    ) -> None:
        self._root = root
        self._limit = limit_bytes
        self._sync = sync
        self._staging = root / ".staging"
        self._quarantine = root / ".quarantine"
        self._serial = itertools.count()
        self._evictions = 0
        try:
            for folder in (root, self._staging, self._quarantine):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._usage = SharedUsage(root / ".usage")
            self._sweep_staging()
            with self._usage.locked():
                self._evict(limit_bytes)
        except OSError as error:
            raise StoreError(f"the folder {root} cannot be used as a store: {error}") from error
        self._threads: ThreadPoolExecutor | None = ThreadPoolExecutor(
            threads, thread_name_prefix="lazyfx-disk"
        )

    @property
    def name(self) -> str:
        """The tier's name."""
        return "disk"

    async def get(self, key: str) -> bytes | None:
        """See `Store.get`."""
        path = self._path(key)
        return await self._in_thread(lambda: _read(path))

    async def put(self, key: str, value: bytes) -> None:
        """See `Store.put`."""
        path = self._path(key)
        await self._in_thread(lambda: self._write(path, value))

    async def contains(self, keys: Iterable[str]) -> set[str]:
        """See `Store.contains`."""
        paths = {key: self._path(key) for key in keys}
        return await self._in_thread(lambda: {key for key, path in paths.items() if _touch(path)})

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        path = self._path(key)
        await self._in_thread(lambda: self._remove(path))

    async def quarantine(self, key: str) -> None:
        """Moves an entry to the quarantine folder, where the newest few are kept."""
        space, digits = checked_key(key)
        aside = self._quarantine / f"{space}-{digits}"
        path = self._path(key)
        await self._in_thread(lambda: self._set_aside(path, aside))

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
        """Waits for running operations. The files stay."""
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.get_running_loop().run_in_executor(None, threads.shutdown)
            self._usage.close()

    def _path(self, key: str) -> Path:
        space, digits = checked_key(key)
        return self._root / space / digits[:2] / digits

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._threads is None:
            raise StoreError("the disk store is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except OSError as error:
            raise StoreError(f"disk store: {error}") from error

    def _write(self, path: Path, value: bytes) -> None:
        size = len(value)
        if size > self._limit:
            self._remove(path)
            return
        staged = self._staging / f"{os.getpid()}-{time.time_ns()}-{next(self._serial)}"
        try:
            self._stage(staged, value)
            with self._usage.locked():
                before = _size(path)
                added = size - (before or 0)
                if self._usage.read()[1] + added > self._limit:
                    self._evict(int(self._limit * LOW_WATERMARK) - size)
                    before = _size(path)
                    added = size - (before or 0)
                _replace(staged, path)
                self._usage.add(1 if before is None else 0, added)
        except OSError:
            with contextlib.suppress(OSError):
                staged.unlink()
            raise

    def _stage(self, staged: Path, value: bytes) -> None:
        with staged.open("xb", buffering=0) as file:
            view = memoryview(value)
            while view:
                view = view[file.write(view) :]
            if self._sync:
                os.fsync(file.fileno())

    def _remove(self, path: Path) -> None:
        with self._usage.locked():
            size = _size(path)
            if size is not None:
                path.unlink(missing_ok=True)
                self._usage.add(-1, -size)

    def _set_aside(self, path: Path, aside: Path) -> None:
        with self._usage.locked():
            size = _size(path)
            if size is None:
                return
            path.replace(aside)
            self._usage.add(-1, -size)
        os.utime(aside)
        kept = sorted(self._quarantine.iterdir(), key=lambda file: file.stat().st_mtime)
        for old in kept[:-MAX_QUARANTINED]:
            old.unlink(missing_ok=True)

    def _evict(self, target: int) -> None:
        """Counts the folder anew, and removes the files used least recently down to `target`."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        entries = len(files)
        for _, size, path in files:
            if total <= max(target, 0):
                break
            Path(path).unlink(missing_ok=True)
            total -= size
            entries -= 1
            self._evictions += 1
        self._usage.set(entries, total)

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """Time of last use, size and path of every entry."""
        for space in _folders(self._root):
            for shard in _folders(space):
                with os.scandir(shard) as found:
                    for file in found:
                        with contextlib.suppress(FileNotFoundError):
                            if file.is_file(follow_symlinks=False):
                                status = file.stat(follow_symlinks=False)
                                yield status.st_mtime_ns, status.st_size, file.path

    def _sweep_staging(self) -> None:
        oldest = time.time() - ORPHAN_SECONDS
        for file in self._staging.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_mtime < oldest:
                    file.unlink()


def _folders(root: Path) -> list[Path]:
    with os.scandir(root) as found:
        return [
            Path(folder.path)
            for folder in found
            if folder.is_dir(follow_symlinks=False) and not folder.name.startswith(".")
        ]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _replace(staged: Path, path: Path) -> None:
    try:
        os.replace(staged, path)  # noqa: PTH105 - the same, without building a path
    except FileNotFoundError:  # the first entry of its folder
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.replace(staged, path)  # noqa: PTH105 - as above


def _read(path: Path) -> bytes | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(file, "rb", buffering=0) as stream:  # noqa: PTH123 - the descriptor is for utime
        value = stream.readall()
        with contextlib.suppress(OSError):  # a read-only file system still answers
            os.utime(file)
    return value


def _touch(path: Path) -> bool:
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except PermissionError:  # a read-only file system
        return path.is_file()
    return True

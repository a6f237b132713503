"""Files in a folder that others may be able to write to: no link is followed, nothing blocks.

Each path component is opened relative to its open parent, so swapping a folder for a link has no
effect. Files are opened without blocking, and only regular files are read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without this, opening a FIFO for reading waits for a writer.
_READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_NEW_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class UnsafeFileError(OSError):
    """Not a regular file of ours."""


class Folder:
    """A folder and its contents. Paths are tuples of names; all errors are OSErrors.

    Args:
        root: Its path. It may itself be a link: that is the operator's choice.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def opened(self, *names: str, create: bool = False) -> Iterator[int]:
        """A descriptor of the folder at `names`.

        Args:
            names: The path from the root.
            create: Create missing folders; replace anything on the path that is not a folder.

        Raises:
            FileNotFoundError: It does not exist.
            UnsafeFileError: Something on the path is not a folder.
        """
        if create:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        current = os.open(self.root, _FOLDER_FLAGS & ~os.O_NOFOLLOW)
        try:
            for name in names:
                below = _step(current, name, create=create)
                os.close(current)
                current = below
            yield current
        finally:
            os.close(current)

    def read(self, *names: str, most: int, used_at: int | None = None) -> bytes | None:
        """The bytes of a file, or None if it does not exist.

        Args:
            names: Its path.
            most: Its maximum size in bytes, checked before it is read.
            used_at: When it is used, in nanoseconds, to be recorded; None to leave that.

        Raises:
            UnsafeFileError: It is a link, not a regular file, or too long.
        """
        try:
            with self.opened(*names[:-1]) as folder:
                file = _open(names[-1], folder)
        except FileNotFoundError:
            return None
        with open(file, "rb", buffering=0) as stream:  # noqa: PTH123 - the descriptor is checked
            status = os.fstat(file)
            _require_plain(status, names[-1])
            if status.st_size > most:
                raise UnsafeFileError(
                    errno.EFBIG, f"has {status.st_size} bytes; the limit is {most}", names[-1]
                )
            value = stream.read(status.st_size + 1) or b""
            while len(value) <= status.st_size and (more := stream.read(status.st_size + 1)):
                value += more
            if used_at is not None:
                with contextlib.suppress(OSError):  # a read-only file system still answers
                    os.utime(file, ns=(used_at, used_at))
        return value[: status.st_size]

    def create(self, *names: str) -> int:
        """A descriptor of a new file; its folder is created if missing.

        Raises:
            FileExistsError: The path exists.
        """
        with self.opened(*names[:-1], create=True) as folder:
            return os.open(names[-1], _NEW_FLAGS, 0o600, dir_fd=folder)

    def status(self, *names: str) -> os.stat_result | None:
        """The status of a regular file; None if it does not exist or is not one."""
        try:
            with self.opened(*names[:-1]) as folder:
                found = os.stat(names[-1], dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, UnsafeFileError):
            return None
        return found if stat.S_ISREG(found.st_mode) else None

    def touch(self, *names: str, used_at: int) -> bool:
        """Record when a file was used, in nanoseconds; returns whether it exists."""
        if self.status(*names) is None:
            return False
        with contextlib.suppress(OSError), self.opened(*names[:-1]) as folder:
            os.utime(names[-1], ns=(used_at, used_at), dir_fd=folder, follow_symlinks=False)
        return True

    def replace(self, old: tuple[str, ...], new: tuple[str, ...]) -> None:
        """Move a file, replacing the destination: a link there is replaced, not followed."""
        with (
            self.opened(*old[:-1]) as source,
            self.opened(*new[:-1], create=True) as target,
        ):
            os.replace(old[-1], new[-1], src_dir_fd=source, dst_dir_fd=target)

    def remove(self, *names: str) -> None:
        """Remove a file, if there is one."""
        with contextlib.suppress(FileNotFoundError), self.opened(*names[:-1]) as folder:
            os.unlink(names[-1], dir_fd=folder)

    def folders(self, *names: str) -> list[str]:
        """Names of the subfolders of a folder, except hidden ones."""
        return [
            entry.name
            for entry in self._entries(*names)
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        ]

    def files(self, *names: str) -> Iterator[tuple[int, int, str]]:
        """Modification time, size and name of each regular file in a folder."""
        for entry in self._entries(*names):
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield status.st_mtime_ns, status.st_size, entry.name

    def _entries(self, *names: str) -> Iterator[os.DirEntry[str]]:
        try:
            with self.opened(*names) as folder, os.scandir(folder) as found:
                yield from found
        except (FileNotFoundError, UnsafeFileError):
            return


def open_plain(path: Path, flags: int) -> int:
    """Open a regular file, without following a link and without blocking.

    A new file is readable by its owner only.

    Args:
        path: The file.
        flags: As for `os.open`.

    Raises:
        OSError: It cannot be opened, or it is a link or not a regular file.
    """
    extra = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        file = os.open(path, flags | extra, 0o600)
    except OSError as error:
        raise _explained(error, path.name) from error
    try:
        _require_plain(os.fstat(file), path.name)
    except BaseException:
        os.close(file)
        raise
    return file


def _step(folder: int, name: str, *, create: bool) -> int:
    """Open a subfolder."""
    try:
        return os.open(name, _FOLDER_FLAGS, dir_fd=folder)
    except FileNotFoundError:
        if not create:
            raise
    except OSError as error:
        if not create:
            raise _explained(error, name) from error
        # A link, or anything else that is not a folder: only this entry is removed.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=folder)
    return os.open(name, _FOLDER_FLAGS, dir_fd=folder)


def _open(name: str, folder: int) -> int:
    try:
        return os.open(name, _READ_FLAGS, dir_fd=folder)
    except OSError as error:
        raise _explained(error, name) from error


def _explained(error: OSError, name: str) -> OSError:
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
        return UnsafeFileError(
            error.errno, "is a link, or neither a regular file nor a folder", name
        )
    return error


def _require_plain(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFileError(errno.EINVAL, "is not a regular file", name)
    if status.st_nlink > 1:
        raise UnsafeFileError(errno.EMLINK, "has more than one hard link", name)

"""A secret of 32 bytes in a file that only its owner can read."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

_BYTES = 32
# Keys and secrets are much smaller.
_MAX_BYTES = 2**20


class SecretFileError(Exception):
    """A file cannot be read, written, or trusted to be private."""


def write_private(path: Path, data: bytes, *, replace: bool) -> None:
    """Atomically write a file that only its owner can read.

    Args:
        path: The file; its folder is created if missing.
        data: The contents.
        replace: Replace an existing file; otherwise it is left unchanged.

    Raises:
        SecretFileError: It cannot be written.
    """
    # Not by the process alone: in containers that share a folder, each server is process 1.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
        ) as file:
            file.write(data)
        try:
            if replace:
                temporary.replace(path)
            else:
                os.link(temporary, path)  # fails if another server was first: then its file is used
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SecretFileError(f"cannot write {path}: {error.strerror or error}") from error


def read_regular(path: Path, most: int) -> bytes:
    """Read a regular file, or a link to one, without blocking.

    Args:
        path: The file. Links are followed: orchestrators mount secrets as links.
        most: Its maximum size in bytes.

    Raises:
        OSError: It cannot be read, is not a regular file, or is too long.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(file, "rb") as stream:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"has more than {most} bytes", str(path))
        return stream.read(most)


def read_private(path: Path) -> bytes:
    """Read a file that must be private to this user.

    Raises:
        SecretFileError: It is missing, or others can read it.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise SecretFileError(f"others can read {path}: run chmod 600 {path}")
        return read_regular(path, _MAX_BYTES)
    except OSError as error:
        raise SecretFileError(f"cannot read {path}: {error.strerror or error}") from error


def secret_of(path: Path | None) -> bytes:
    """The secret in a file, created if missing; without a file, a new secret in memory.

    Raises:
        SecretFileError: The file cannot be used.
    """
    if path is None:
        return secrets.token_bytes(_BYTES)
    if not path.exists():
        write_private(path, secrets.token_bytes(_BYTES), replace=False)
    secret = read_private(path)
    if len(secret) != _BYTES:
        raise SecretFileError(f"{path} does not hold {_BYTES} bytes")
    return secret

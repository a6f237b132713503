"""How far a native job is: written by its worker, read by the server."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from lazyfx.v1 import compiler_pb2 as pb

_MAX_BYTES: Final = 1024
_STAGES: Final = ("tracing", "compiling", "packing")


class Progress:
    """Writes how far a job is into a file.

    Args:
        path: The file; it is replaced each time, so that a reader sees all or nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started = time.monotonic()
        self._stage = "tracing"
        self._kernels = 0

    def stage(self, name: str) -> None:
        """Say what is being done now."""
        self._stage = name
        self._write()

    def kernels(self, count: int) -> None:
        """Say how many kernels are compiled."""
        self._stage, self._kernels = "compiling", count
        self._write()

    def _write(self) -> None:
        message = pb.ArtifactProgress(
            stage=self._stage, kernels=self._kernels, seconds=time.monotonic() - self._started
        )
        temporary = self._path.with_suffix(".new")
        temporary.write_bytes(message.SerializeToString())
        temporary.replace(self._path)


def read_progress(path: Path) -> pb.ArtifactProgress:
    """How far a job is; "waiting" before it has begun."""
    try:
        return _checked(pb.ArtifactProgress.FromString(_read(path)))
    except (OSError, ValueError, DecodeError):
        return pb.ArtifactProgress(stage="waiting")


def _read(path: Path) -> bytes:
    """A small regular file of a worker's, which may have put anything else in its place.

    Raises:
        OSError: It cannot be opened, or is a link.
        ValueError: It is not a regular file, or a large one.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
            raise ValueError("not what a worker writes")
        return file.read(_MAX_BYTES)


def _checked(progress: pb.ArtifactProgress) -> pb.ArtifactProgress:
    if progress.stage not in _STAGES:
        raise ValueError("not a stage")
    return progress

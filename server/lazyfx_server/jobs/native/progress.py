"""The progress of a native job: written by its worker, read by the server."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.v1 import worker_pb2 as worker

_MAX_BYTES: Final = 1024
_STAGES: Final = ("tracing", "compiling", "packing")


class Progress:
    """Writes the progress of a job to a file.

    Args:
        path: The file; it is replaced atomically on each update.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started = time.monotonic()

    def stage(self, name: str) -> None:
        """Set the current stage."""
        message = pb.ArtifactProgress(stage=name, seconds=time.monotonic() - self._started)
        temporary = self._path.with_suffix(".new")
        temporary.write_bytes(message.SerializeToString())
        temporary.replace(self._path)


def read_progress(path: Path) -> pb.ArtifactProgress:
    """The progress of a job; "waiting" before it has begun."""
    try:
        return progress_of(_read(path))
    except (OSError, ValueError):
        return progress_of(b"")


def progress_of(data: bytes) -> pb.ArtifactProgress:
    """The progress in a file, or in the note of a server; "waiting" if it is none."""
    try:
        return _checked(pb.ArtifactProgress.FromString(data))
    except (ValueError, DecodeError):
        return pb.ArtifactProgress(stage="waiting")


def made_progress(kernels: worker.KernelCounts, seconds: float) -> pb.ArtifactProgress:
    """The last report of a job, when its artifact is made."""
    return pb.ArtifactProgress(
        stage="packing",
        kernels=kernels.known + kernels.compiled,
        known_kernels=kernels.known,
        seconds=seconds,
    )


def _read(path: Path) -> bytes:
    """Read a worker's small regular file; a worker may have replaced it with anything.

    Raises:
        OSError: It cannot be opened, or it is a link.
        ValueError: It is not a regular file, or too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
            raise ValueError("not a progress file")
        return file.read(_MAX_BYTES)


def _checked(progress: pb.ArtifactProgress) -> pb.ArtifactProgress:
    if progress.stage not in _STAGES:
        raise ValueError("unknown stage")
    return progress

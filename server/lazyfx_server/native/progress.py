"""How far a native job is: written by its worker, read by the server."""

from __future__ import annotations

import time
from pathlib import Path

from google.protobuf.message import DecodeError

from lazyfx.v1 import compiler_pb2 as pb


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
        aside = self._path.with_suffix(".new")
        aside.write_bytes(message.SerializeToString())
        aside.replace(self._path)


def read_progress(path: Path) -> pb.ArtifactProgress:
    """How far a job is; "waiting" before it has begun."""
    try:
        return pb.ArtifactProgress.FromString(path.read_bytes())
    except (OSError, DecodeError):
        return pb.ArtifactProgress(stage="waiting")

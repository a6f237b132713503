"""Bytes to upload to a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lazyfx.v1 import graph_pb2


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that the server requested, read when they are sent."""

    digest: graph_pb2.Digest
    read: Callable[[], memoryview]

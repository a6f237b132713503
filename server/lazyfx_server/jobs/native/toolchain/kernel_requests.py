"""The kernels of one job: requested early, many at a time, and collected at the end."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lazyfx_server.jobs.native.toolchain.torch_inductor_kernels import (
    FindLibrary,
    requesting_kernels,
)

# Requests that wait for an answer at a time, each in a thread. The server decides how many of them
# it compiles at a time, and answers at once what it knows.
_MOST_WAITING: Final = 32


class RequestedKernels:
    """The kernels that Inductor uses."""

    def __init__(self) -> None:
        self._libraries: dict[bytes, FindLibrary] = {}

    def add(self, source: bytes, find: FindLibrary) -> None:
        """Remember a kernel by the digest of its source."""
        self._libraries.setdefault(source, find)

    def drop(self, source: bytes) -> None:
        """Forget a kernel that could not be compiled, which Inductor knows."""
        self._libraries.pop(source, None)

    def collect(self) -> dict[bytes, Path]:
        """Wait for all; the paths of their libraries by the digest of their sources.

        Raises:
            Exception: Whatever the first failed compile raised.
        """
        return {source: Path(find()) for source, find in self._libraries.items()}


@contextmanager
def requested_kernels() -> Iterator[RequestedKernels]:
    """Request every kernel that Inductor writes within the block."""
    kernels = RequestedKernels()
    threads = ThreadPoolExecutor(_MOST_WAITING, thread_name_prefix="lazyfx-kernel")
    try:
        with requesting_kernels(threads.submit, kernels.add, kernels.drop):
            yield kernels
    finally:
        # A job that fails does not wait for kernels: the server stops their compiles.
        threads.shutdown(wait=False, cancel_futures=True)

"""Refuses calls before file descriptors run out.

A server without descriptors cannot read its store, start a worker or accept a probe. gRPC accepts
connections itself, so only calls can be refused.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Final

from lazyfx_server.errors import OverloadedError
from lazyfx_server.file_limit import file_limit

_log = logging.getLogger(__name__)

_SAMPLE_SECONDS: Final = 0.25
_RETRY_SECONDS: Final = 2.0


class FileDescriptorGuard:
    """Refuses calls while few file descriptors are left.

    Args:
        count: Returns how many are open.
        limit: Returns how many may be open.
        clock: A monotonic clock in seconds.
    """

    def __init__(
        self,
        count: Callable[[], int] | None = None,
        limit: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count = count or _open_now
        self._limit = limit or file_limit
        self._clock = clock
        self._sampled = float("-inf")
        self._short: tuple[int, int] | None = None
        self._warned = False

    def check(self) -> None:
        """Refuse a call if few descriptors are left.

        Raises:
            OverloadedError: Few are left; says when to retry.
        """
        now = self._clock()
        if now - self._sampled >= _SAMPLE_SECONDS:
            self._sampled = now
            self._sample()
        if self._short is not None:
            used, limit = self._short
            raise OverloadedError(
                f"the server has {used} of at most {limit} files and connections open",
                retry_after=_RETRY_SECONDS,
            )

    def _sample(self) -> None:
        used, limit = self._count(), self._limit()
        # Reserved for the store, workers and probes.
        reserve = max(32, min(limit // 10, 256))
        self._short = (used, limit) if used + reserve > limit else None
        if self._short is not None and not self._warned:
            _log.warning("%d of %d file descriptors are open: calls are refused", used, limit)
        elif self._short is None and self._warned:
            _log.warning("file descriptors are available again: calls are served")
        self._warned = self._short is not None


def _open_now() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only
    except FileNotFoundError:  # not Linux
        return 0
    except OSError:  # no descriptor is left to count them
        return file_limit()

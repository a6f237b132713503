"""Logs failed calls and refused callers, with a rate limit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

_LINES_A_SECOND: Final = 20.0
_LINES_AT_ONCE: Final = 100.0

_WARNED: Final = frozenset(
    {
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "DEADLINE_EXCEEDED",
        "UNAVAILABLE",
        "INTERNAL",
        "UNKNOWN",
    }
)


class RateLimit(logging.Filter):
    """Limits the rate of each kind of line; the next line says how many were suppressed.

    A kind is a format string, so callers cannot create new ones.

    Args:
        clock: A monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._allowance: dict[str, tuple[float, float]] = {}
        self._left_out: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a line; see `logging.Filter`."""
        kind, now = str(record.msg), self._clock()
        level, since = self._allowance.get(kind, (_LINES_AT_ONCE, now))
        level = min(_LINES_AT_ONCE, level + (now - since) * _LINES_A_SECOND)
        if level < 1.0:
            self._allowance[kind] = (level, now)
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        self._allowance[kind] = (level - 1.0, now)
        if left_out := self._left_out.pop(kind, 0):
            record.msg = f"{kind} ({left_out} similar lines were suppressed before)"
        return True


_log = logging.getLogger("lazyfx_server.calls")
_log.addFilter(RateLimit())


def log_refused_caller(method: str, peer: str, reason: str) -> None:
    """Log a refused caller, without its credentials."""
    _log.warning("refused a caller: method=%s peer=%s reason=%s", method, peer, reason)


def log_failure(
    request_id: str, method: str, code: str, seconds: float, tenant: str, message: str
) -> None:
    """A call failed.

    Args:
        request_id: Id of the call; callers get it with their error.
        method: Its method.
        code: Name of the status code.
        seconds: Its duration.
        tenant: Its tenant, if known.
        message: The error message, which may contain text from the caller.
    """
    level = logging.WARNING if code in _WARNED else logging.INFO
    _log.log(
        level,
        "request failed: id=%s method=%s code=%s seconds=%.3f tenant=%s message=%r",
        request_id,
        method,
        code,
        seconds,
        tenant or "-",
        message,
    )


def log_missing(request_id: str, method: str, seconds: float, tenant: str) -> None:
    """Log a call that must upload something first, which is a step and not a failure."""
    _log.debug(
        "request must send more: id=%s method=%s seconds=%.3f tenant=%s",
        request_id,
        method,
        seconds,
        tenant or "-",
    )

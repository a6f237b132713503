"""The limit on files and connections that this process may have open."""

from __future__ import annotations

import contextlib
import logging
import resource
from typing import Final

_log = logging.getLogger(__name__)

RECOMMENDED: Final = 4096
"""Below this limit the server logs a warning at startup."""

_ENOUGH: Final = 1_048_576


def file_limit() -> int:
    """The current limit."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _ENOUGH if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Raise the limit of this process and its children as far as permitted.

    Logs a warning if the limit stays low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if (limit := file_limit()) < RECOMMENDED:
        _log.warning(
            "the limit on open files is %d (ulimit -n), and each connection takes one; %d or more "
            "are recommended",
            limit,
            RECOMMENDED,
        )

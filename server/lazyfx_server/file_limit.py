"""How many files and connections this process may have open."""

from __future__ import annotations

import contextlib
import logging
import resource
from typing import Final

_log = logging.getLogger(__name__)

RECOMMENDED: Final = 4096
"""Below this limit a server says so when it starts."""

_ENOUGH: Final = 1_048_576


def file_limit() -> int:
    """The limit now."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _ENOUGH if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Raise the limit of this process, and of those that it starts, as far as it may.

    A limit that stays low is logged.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may not let it
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if (limit := file_limit()) < RECOMMENDED:
        _log.warning(
            "only %d file descriptors may be open (ulimit -n): each connection takes one; "
            "%d or more are recommended",
            limit,
            RECOMMENDED,
        )

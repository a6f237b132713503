"""Keeps the servers off the client's core while single calls are timed.

A call takes a fraction of a millisecond, and the kernel tends to wake a server on the core of the
client that has just written to it. Client and server then randomly share one core, and work that
could overlap is done sequentially.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def apart(servers: Sequence[int]) -> Iterator[None]:
    """Within the block, give the servers one core and this process the others.

    Args:
        servers: Process ids. Nothing happens with a single core, or outside of Linux.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        yield
        return
    try:
        for pid in servers:
            _move(pid, cores[-1:])
        _move(os.getpid(), cores[:-1])
        yield
    finally:
        for pid in (*servers, os.getpid()):
            _move(pid, cores)


def _move(pid: int, cores: Sequence[int]) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)

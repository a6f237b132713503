"""Worker processes that begin with a new interpreter, for what does not survive a fork.

CUDA is such a thing: a process cannot use it that was forked from one which has asked for
devices, and torch asks when it makes its first fake tensor.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path

from lazyfx_server.execution.launching import launching

_STANDARD_ERROR = 2


class SpawnSource:
    """Starts each process from nothing; it takes the seconds of its imports to be ready.

    Args:
        preload: Modules that each process imports first. One that is not there is passed over,
            as a fork server does.
        environment: Variables that are set in each.
    """

    def __init__(
        self, preload: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._preload = tuple(preload)
        self._environment = dict(environment or {})

    def spawn(self, target: Callable[..., None], arguments: tuple[object, ...]) -> SpawnProcess:
        """See `ProcessSource.spawn`."""
        # Not to be joined at exit: a process whose parent is on its way out is killed.
        process = self._context.Process(
            target=_begin, args=(self._preload, target, arguments), daemon=True
        )
        with launching(self._environment):
            process.start()
        return process


def _begin(
    preload: Sequence[str], target: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    # By one of them the server learns that this process has ended; a compiler that a job starts
    # is not to hold it open.
    for descriptor in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # that of this loop is closed already
            os.set_inheritable(int(descriptor.name), int(descriptor.name) <= _STANDARD_ERROR)
    for name in preload:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    target(*arguments)

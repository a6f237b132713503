"""Worker processes with a new interpreter, for libraries that do not survive a fork.

CUDA is one: a process cannot use it if its parent queried devices before the fork, and torch
queries them when it creates its first fake tensor.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path

from lazyfx_server.execution.launching import forget_temporary_folder, launching

_STANDARD_ERROR = 2


class SpawnSource:
    """Starts each process with a new interpreter; importing takes seconds.

    Args:
        preload: Modules that each process imports first. Missing modules are skipped, as a fork
            server does.
        environment: Variables that are set in each process.
    """

    def __init__(
        self, preload: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._preload = tuple(preload)
        self._environment = dict(environment or {})

    def spawn(self, target: Callable[..., None], arguments: tuple[object, ...]) -> SpawnProcess:
        """See `ProcessSource.spawn`."""
        # Not joined at exit: a process is killed when its parent exits.
        process = self._context.Process(
            target=_begin, args=(self._preload, target, arguments), daemon=True
        )
        forget_temporary_folder(process)
        with launching(self._environment):
            process.start()
        return process


def _begin(
    preload: Sequence[str], target: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    # The server detects the end of this process by one of them; a compiler started by a job must
    # not keep it open.
    for descriptor in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # the descriptor of this loop is already closed
            os.set_inheritable(int(descriptor.name), int(descriptor.name) <= _STANDARD_ERROR)
    for name in preload:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    target(*arguments)

"""The process that worker processes are forked from.

A fork server imports the heavy modules once; a worker forked from it is ready
in milliseconds. It must be started before gRPC is used in this process, because
gRPC's threads do not survive a fork, and launching the fork server is itself a fork.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from typing import Final

from lazyfx_server.execution.launching import launching

_SETUP: Final = "lazyfx_server.execution.forkserver_setup"


class ForkServer:
    """Forks processes with modules already imported.

    Python keeps one fork server per process: the first `ForkServer` started decides what is
    imported.

    Args:
        preload: Modules to import once, in the fork server.
        environment: Variables to set before the import, for libraries that read them at load time
            (OMP_NUM_THREADS).
    """

    def __init__(
        self, preload: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._preload = [_SETUP, *preload]
        self._environment = dict(environment or {})

    def start(self) -> None:
        """Launches the fork server if it is not running; does not wait for its imports.

        Raises:
            OSError: The process could not be launched.
        """
        with launching(self._environment):
            self._ensure_running()

    def spawn(
        self, target: Callable[..., None], arguments: tuple[object, ...]
    ) -> ForkServerProcess:
        """See `ProcessSource.spawn`; the process is a fork of the fork server.

        Raises:
            OSError: The fork server is gone, or cannot fork.
            EOFError: It died during the request.
        """
        # Not joined at exit: a process is killed when its parent exits.
        process = self._context.Process(target=target, args=arguments, daemon=True)
        with launching(self._environment):
            self._ensure_running()
            process.start()
        return process

    @staticmethod
    def kill() -> None:
        """Kills the fork server, even one that is still importing.

        Callers waiting for one of its processes get an error. Python has no public API for this.
        """
        known = getattr(multiprocessing.forkserver, "_forkserver", None)
        pid = getattr(known, "_forkserver_pid", None)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _ensure_running(self) -> None:
        self._context.set_forkserver_preload(self._preload)
        multiprocessing.forkserver.ensure_running()


def start_forkserver(
    preload: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> ForkServer:
    """Launches a fork server; call it before gRPC is used.

    Args:
        preload: Modules to import once, e.g. the one that holds the job function.
        environment: Variables that are set in it, and thus in every worker.

    Raises:
        OSError: The process could not be launched.
    """
    server = ForkServer(preload, environment)
    server.start()
    return server

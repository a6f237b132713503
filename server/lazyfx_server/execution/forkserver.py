"""The process that worker processes are forked from.

A fork server imports the heavy modules once; a worker forked from it is ready
in milliseconds. It must be started before gRPC is used in this process, because
gRPC's threads do not survive a fork, and launching the fork server is itself a fork.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Final

from lazyfx_server.execution.launching import forget_temporary_folder, launching
from lazyfx_server.execution.owned_folder import OwnedFolder

_log = logging.getLogger(__name__)

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
            forget_temporary_folder(process)
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
        _own_temporary_folder()
        self._context.set_forkserver_preload(self._preload)
        multiprocessing.forkserver.ensure_running()


def _own_temporary_folder() -> None:
    """Have multiprocessing put the socket of the fork server into a folder that is swept.

    It would create one in the folder for temporary files, which a process that is killed leaves
    there for ever, under a name that does not say whose it is.
    """
    # Python has no public API for this. Once set, it stays the same for the life of the process.
    config = getattr(multiprocessing.current_process(), "_config", {})
    if "tempdir" in config:
        return
    try:
        owned = OwnedFolder(Path(tempfile.gettempdir()) / f"lazyfx-workers-{os.geteuid()}")
    except OSError as error:
        _log.warning("if this process is killed, it leaves a folder pymp-* behind: %s", error)
        return
    # The path of a Unix socket has at most 107 bytes. Only this process opens the socket by it.
    config["tempdir"] = f"/proc/self/fd/{os.open(owned.path, os.O_PATH | os.O_DIRECTORY)}"
    # Unlike what atexit runs, not run in forks of this process. Last, as multiprocessing's own.
    Finalize(None, owned.close, exitpriority=-100)


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

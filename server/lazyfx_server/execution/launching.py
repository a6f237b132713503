"""Code shared by all ways of starting a worker process."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.process import BaseProcess
from typing import Protocol

# Both ways change process-wide state: multiprocessing's single fork server, and the environment.
_launching = threading.Lock()


class ProcessSource(Protocol):
    """Where worker processes come from."""

    def spawn(self, target: Callable[..., None], arguments: tuple[object, ...]) -> BaseProcess:
        """Starts a process that calls `target(*arguments)`. Blocks until it exists.

        The process ends with this one at the latest; see `worker_loop`.

        Raises:
            OSError: It could not be started.
            EOFError: The process that starts it has died.
        """
        ...


@contextlib.contextmanager
def launching(variables: Mapping[str, str]) -> Iterator[None]:
    """Hold the launch lock, with these environment variables set.

    multiprocessing passes this process's environment to a new process and cannot pass another one.
    """
    with _launching:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def forget_temporary_folder(process: BaseProcess) -> None:
    """Have a process not started yet make its own temporary folder, if multiprocessing needs one.

    It would inherit the path of this process's folder (`forkserver`), which names a descriptor that
    it does not have.
    """
    # Python has no public API for this.
    getattr(process, "_config", {}).pop("tempdir", None)

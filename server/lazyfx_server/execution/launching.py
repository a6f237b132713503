"""What all ways of starting a worker process have in common."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.process import BaseProcess
from typing import Protocol

# Both ways change what belongs to the whole process: multiprocessing's one fork server, and
# the environment.
_launching = threading.Lock()


class ProcessSource(Protocol):
    """Where worker processes come from."""

    def spawn(self, target: Callable[..., None], arguments: tuple[object, ...]) -> BaseProcess:
        """Starts a process that calls `target(*arguments)`. Blocks until it exists.

        The process ends with this one at the latest; see `worker_loop`.

        Raises:
            OSError: It could not be started.
            EOFError: What starts it has died meanwhile.
        """
        ...


@contextlib.contextmanager
def launching(variables: Mapping[str, str]) -> Iterator[None]:
    """One launch at a time, with these environment variables.

    multiprocessing gives a new process the environment of this one and has no argument for
    another.
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

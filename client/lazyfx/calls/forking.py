"""Forks: gRPC does not survive one, so a forked child refuses to use its clients.

gRPC's threads do not exist in a forked child, but its locks and queues do: a call there hangs or
crashes, and so does the destructor of a channel. A process forked after its parent opened a client
therefore cannot open one, and never releases what it inherited.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Final, NoReturn, SupportsIndex

from lazyfx.errors import ForkedProcessError


class _Process:
    """The fork state of this process.

    Attributes:
        uses_grpc: Whether a client was ever opened in this process.
        is_forked: Whether the parent process had opened a client before the fork.
    """

    def __init__(self) -> None:
        self.uses_grpc = False
        self.is_forked = False
        self.inherited: weakref.WeakSet[object] = weakref.WeakSet()

    def after_fork(self) -> None:
        """Runs first in a forked child."""
        if not self.uses_grpc:
            return
        self.is_forked = True
        for thing in list(self.inherited):
            # A raw reference count: the interpreter drops ordinary references at exit.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


_process: Final = _Process()
os.register_at_fork(after_in_child=_process.after_fork)


def is_forked() -> bool:
    """Whether this process was forked after a client had been opened in its parent."""
    return _process.is_forked


def require_not_forked() -> None:
    """Raise an error in a process that cannot use clients.

    Raises:
        ForkedProcessError: This process was forked after a client had been opened in its parent.
    """
    if _process.is_forked:
        raise ForkedProcessError


def mark_grpc_used() -> None:
    """Record that this process is about to use gRPC.

    Raises:
        ForkedProcessError: It was forked after a client had been opened in its parent.
    """
    require_not_forked()
    _process.uses_grpc = True


def leak_in_children(thing: object) -> None:
    """Keep forked children from ever releasing an object that gRPC's threads use."""
    _process.inherited.add(thing)


class OfOneProcess:
    """An object that holds a connection of its process, so it cannot be pickled or copied."""

    # What to do instead.
    _elsewhere = "call lazyfx.connect in each process, e.g. when a DataLoader worker first needs it"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Raises TypeError, as objects do that cannot be pickled."""
        raise TypeError(
            f"cannot pickle or copy a {type(self).__name__}, which holds a connection of its "
            f"process; {self._elsewhere}"
        )

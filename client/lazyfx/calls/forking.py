"""What a fork does to clients: gRPC does not survive one, so a child is told and touches nothing.

gRPC's threads do not exist in a forked child while its locks and queues are as they were: a call
there hangs or crashes, and so does the destructor of a channel. A process that was forked after a
client had been opened in its parent therefore opens none, and never lets go of what it inherited.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Final

from lazyfx.errors import ForkedProcessError


class _Process:
    """What this process knows about itself.

    Attributes:
        uses_grpc: Whether a client was opened here, closed since or not.
        is_forked: Whether the process that this one was forked from had opened a client.
    """

    def __init__(self) -> None:
        self.uses_grpc = False
        self.is_forked = False
        self.inherited: weakref.WeakSet[object] = weakref.WeakSet()

    def after_fork(self) -> None:
        """Runs in a child before anything else does."""
        if not self.uses_grpc:
            return
        self.is_forked = True
        for thing in list(self.inherited):
            # Not a reference of Python's own, which the end of the interpreter would drop.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


_process: Final = _Process()
os.register_at_fork(after_in_child=_process.after_fork)


def is_forked() -> bool:
    """Whether this process was forked after a client had been opened in its parent."""
    return _process.is_forked


def require_not_forked() -> None:
    """Fail at once in a process that cannot use clients.

    Raises:
        ForkedProcessError: This process was forked after a client had been opened in its parent.
    """
    if _process.is_forked:
        raise ForkedProcessError


def mark_grpc_used() -> None:
    """Announce that this process is about to use gRPC.

    Raises:
        ForkedProcessError: It cannot.
    """
    require_not_forked()
    _process.uses_grpc = True


def leak_in_children(thing: object) -> None:
    """Have forked children never release an object that gRPC's threads work with."""
    _process.inherited.add(thing)

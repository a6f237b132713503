"""A process that servers are forked from: `python nursery_process.py KIND ADDRESS OWNER`.

It imports what a server imports and what its fork server imports, but starts no thread and does
not use gRPC, so that its forks can. `nursery.py` describes the use, and makes the requests.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import types
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# As the server sets them before it imports anything of either.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

# Not run again: only what they import and set up is wanted, and they are imported anew where they
# configure the process that imports them.
_IMPORTED = {
    "plain": ("lazyfx_server.__main__", "lazyfx_server.app", "lazyfx_server.jobs.preload"),
    "native": ("lazyfx_server.jobs.native.inductor_preload",),
}
_RUN_AGAIN = ("lazyfx_server.__main__", "lazyfx_server.jobs.preload")
_SWITCH_SECONDS = sys.getswitchinterval()
_STREAMS = 3


@dataclass
class Request:
    """One server that is wanted.

    Attributes:
        connection: To the test; closed by it when the server is not needed any more.
        arguments: Of `lazyfx_server`.
        environment: All its variables.
        folder: Its current folder.
        streams: Its standard streams.
    """

    connection: socket.socket
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    streams: list[int]


@dataclass
class Nursery:
    """Forks servers and tells of their ends.

    Args:
        listener: Takes connections; each is one server.
        owner: The nursery ends with this process, and its servers with it.
    """

    listener: socket.socket
    owner: int
    _running: dict[int, socket.socket] = field(default_factory=dict)

    def serve(self) -> Request | None:
        """Run until a fork has a server to be, which it returns; None when the owner has ended."""
        selector = selectors.DefaultSelector()
        signals, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        ended = os.pidfd_open(self.owner)
        selector.register(self.listener, selectors.EVENT_READ)
        selector.register(signals, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is self.listener:
                    request = _read(self.listener.accept()[0])
                    if request is not None and self._fork(request) == 0:
                        return request
                elif key.fileobj is signals:
                    signals.recv(4096)
                    self._reap()
                else:
                    for pid in self._running:
                        os.kill(pid, signal.SIGKILL)
                    return None

    def _fork(self, request: Request) -> int:
        pid = os.fork()
        if pid:
            self._running[pid] = request.connection
            _send(request.connection, {"pid": pid})
            for stream in request.streams:
                os.close(stream)
        return pid

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            connection = self._running.pop(pid)
            _send(connection, {"status": os.waitstatus_to_exitcode(status)})
            connection.close()


def _read(connection: socket.socket) -> Request | None:
    size, streams, _, _ = socket.recv_fds(connection, 4, _STREAMS)
    if len(size) < 4:
        return None
    data = connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    return Request(connection, **json.loads(data), streams=streams)


def _send(connection: socket.socket, message: object) -> None:
    data = json.dumps(message).encode()
    # The test may have ended.
    with contextlib.suppress(OSError):
        connection.sendall(len(data).to_bytes(4, "big") + data)


def _become(request: Request) -> None:
    """Make this fork what a new interpreter would be."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
    request.connection.detach()
    os.closerange(_STREAMS, os.sysconf("SC_OPEN_MAX"))
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    sys.path[:0] = [request.folder, *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
    sys.argv = ["lazyfx_server", *request.arguments]
    importlib.invalidate_caches()
    random.seed()
    multiprocessing.util.spawnv_passfds = _fork_server_by_fork(multiprocessing.util.spawnv_passfds)


def _fork_server_by_fork(start: Any) -> Any:
    """Starts helper processes of multiprocessing; its fork server as a fork of this process."""

    def spawnv_passfds(path: str, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
        if "multiprocessing.forkserver" not in arguments[-1]:
            return int(start(path, arguments, descriptors))
        pid = os.fork()
        if pid == 0:
            try:
                _be_fork_server(arguments[-1], descriptors)
            finally:
                os._exit(1)
        return pid

    return spawnv_passfds


def _be_fork_server(program: str, descriptors: Sequence[int]) -> None:
    kept = {0, 1, 2, *descriptors}
    for entry in Path("/proc/self/fd").iterdir():
        if int(entry.name) not in kept:
            # That of this loop is closed already.
            with contextlib.suppress(OSError):
                os.close(int(entry.name))
    multiprocessing.resource_tracker._resource_tracker._fd = None
    _forget_configuration()
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        exec(program, {"__name__": "__main__"})
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 0)


def _forget_configuration() -> None:
    """Undo what a module has set that is run again here, or what a server's main program has."""
    sys.stderr = sys.__stderr__
    logging.captureWarnings(False)
    logging.basicConfig(level="WARNING", handlers=[], force=True)
    warnings.formatwarning = _formatwarning
    sys.setswitchinterval(_SWITCH_SECONDS)
    for name in _RUN_AGAIN:
        sys.modules.pop(name, None)


_formatwarning = warnings.formatwarning


def _prepare(kind: str) -> None:
    for name in ("plain", kind):
        for module in _IMPORTED[name]:
            importlib.import_module(module)
    _forget_configuration()
    gc.collect()
    gc.freeze()


def main(kind: str, address: str, owner: int) -> None:
    """Serve until the owner ends; a fork goes on as a server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    del sys.path[0]  # this folder
    _prepare(kind)
    with socket.socket(socket.AF_UNIX) as listener:
        made = f"{address}.made"
        listener.bind(made)
        listener.listen(64)
        Path(made).rename(address)
        request = Nursery(listener, owner).serve()
        if request is None:
            os._exit(0)
        listener.detach()
    _become(request)
    runpy.run_module("lazyfx_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

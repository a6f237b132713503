"""A process that programs are forked from: `python nursery_process.py KIND ADDRESS OWNER`.

It has imported what they need, but has started no thread and has not used gRPC, so that its forks
can. `nursery.py` describes the use, and makes the requests.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import logging
import multiprocessing.util
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading
import traceback
import types
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Modules that a server and its fork server must find unconfigured, so both import them again.
_CONFIGURING = ("lazyfx_server.__main__", "lazyfx_server.jobs.preload")
_SERVER = (*_CONFIGURING, "lazyfx_server.app")
_IMPORTED = {
    "torch": ("torch",),
    "inductor": ("torch._inductor.compile_fx", "torch._inductor.standalone_compile"),
    "server": _SERVER,
    "native_server": (*_SERVER, "lazyfx_server.jobs.native.ahead.prepared_inductor"),
}
# As a server sets them before it imports anything, or else Inductor would start processes.
_VARIABLES = {
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "TORCH_WARM_POOL": "0",
}
_SWITCH_SECONDS = sys.getswitchinterval()
_STREAMS = 3
_MOST_DESCRIPTORS = 8
_TEMPORARY = 500


@dataclass
class Request:
    """A request for one program.

    Attributes:
        connection: To the requester, which closes it when it no longer needs the program.
        arguments: Of the interpreter.
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
    """Forks programs and reports how they end.

    Args:
        listener: Takes connections; each is one program.
        owner: The nursery ends with this process, and its programs with it.
    """

    listener: socket.socket
    owner: int
    _running: dict[int, socket.socket] = field(default_factory=dict)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def serve(self) -> Request | None:
        """Run until the owner has ended. In each fork, return the request for its program."""
        signals, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        ended = os.pidfd_open(self.owner)
        for source in (self.listener, signals, ended):
            self._selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self.listener:
                    request = _read(self.listener.accept()[0])
                    if request is not None and self._fork(request) == 0:
                        self._selector.close()
                        return request
                elif key.fileobj is signals:
                    signals.recv(4096)
                    self._reap()
                elif key.fileobj == ended:
                    for pid in self._running:
                        os.kill(pid, signal.SIGKILL)
                    return None
                elif key.data in self._running:
                    # The requester has dropped the program.
                    os.kill(key.data, signal.SIGKILL)
                    self._selector.unregister(key.fileobj)

    def _fork(self, request: Request) -> int:
        pid = _fork()
        if pid:
            self._running[pid] = request.connection
            self._selector.register(request.connection, selectors.EVENT_READ, pid)
            _send(request.connection, {"pid": pid})
            for stream in request.streams:
                os.close(stream)
        return pid

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            connection = self._running.pop(pid)
            with contextlib.suppress(KeyError):  # unregistered above
                self._selector.unregister(connection)
            _send(connection, {"status": os.waitstatus_to_exitcode(status)})
            connection.close()


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns if there are other threads; OpenBLAS has some, and restarts them.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _read(connection: socket.socket) -> Request | None:
    size, streams, _, _ = socket.recv_fds(connection, 4, _STREAMS)
    if len(size) < 4:
        return None
    data = connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    return Request(connection, **json.loads(data), streams=streams)


def _send(connection: socket.socket, message: object) -> None:
    data = json.dumps(message).encode()
    # The requester may have ended.
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
    # What holds a descriptor must be gone before the descriptor is: it would close another later.
    gc.collect()
    os.closerange(_STREAMS, os.sysconf("SC_OPEN_MAX"))
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    tempfile.tempdir = None  # as TMPDIR says
    importlib.invalidate_caches()
    random.seed()
    _set_threads()
    if "lazyfx_server.app" in sys.modules:
        _prepare_fork_server()


def _set_threads() -> None:
    """As if the variable had been there when torch was imported."""
    if threads := os.environ.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(int(threads))


def _run(words: list[str]) -> None:
    """Run what an interpreter with these arguments would."""
    words, isolated = list(words), False
    while words[0] in ("-I", "-W"):
        option = words.pop(0)
        isolated |= option == "-I"
        if option == "-W":
            warnings.simplefilter(words.pop(0))  # type: ignore[arg-type]
    sys.path[:0] = [] if isolated else _python_path()
    option = words[0]
    if option == "-c":
        code = words[1]
        sys.argv = ["-c", *words[2:]]
        sys.path[:0] = [] if isolated else [""]
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), module.__dict__)
    elif option == "-m":
        sys.argv = words[1:]
        sys.path[:0] = [] if isolated else [str(Path.cwd())]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path[:0] = [] if isolated else [str(Path(option).resolve().parent)]
        code = Path(option).read_text("utf-8")
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        module.__dict__["__file__"] = option
        exec(compile(code, option, "exec"), module.__dict__)


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]


def _run_to_end(words: list[str]) -> None:
    """Run a program, and end this process as the interpreter would, but without freeing memory.

    Freeing each object would first copy the pages that this process shares with its nursery, which
    takes most of a second of a core.
    """
    status = 0
    try:
        _run(words)
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise  # the interpreter prints it
        status = ended.code or 0
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed
            stream.flush()
    os._exit(status & 0xFF)


def _prepare_fork_server() -> None:
    """Fork this server's future fork server, before this process is configured as a server.

    It waits until multiprocessing would start a new interpreter for it.
    """
    ours, theirs = socket.socketpair()
    pid = _fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ours.close()
        try:
            _run_fork_server(theirs)
        except BaseException:  # noqa: BLE001 - this is a process's end
            traceback.print_exc()
        finally:
            os._exit(1)
    theirs.close()
    start = multiprocessing.util.spawnv_passfds

    def spawnv_passfds(path: str, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
        program = str(arguments[-1])
        if "multiprocessing.forkserver" not in program or ours.fileno() < 0:
            return int(start(path, arguments, descriptors))
        request = {"program": program, "numbers": [*descriptors], "variables": dict(os.environ)}
        data = json.dumps(request).encode()
        socket.send_fds(ours, [len(data).to_bytes(4, "big")], descriptors)
        ours.sendall(data)
        ours.close()
        return pid

    multiprocessing.util.spawnv_passfds = spawnv_passfds


def _run_fork_server(server: socket.socket) -> None:
    size, received, _, _ = socket.recv_fds(server, 4, _MOST_DESCRIPTORS)
    if len(size) < 4:
        os._exit(0)  # the server has ended without one
    start = json.loads(server.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    server.close()
    # Its program names them by their numbers; none of these is in the way of another.
    temporary = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _TEMPORARY) for descriptor in received]
    for descriptor in received:
        os.close(descriptor)
    for descriptor, number in zip(temporary, start["numbers"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(start["variables"])
    sys.path[:0] = _python_path()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _set_threads()
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        exec(start["program"], {"__name__": "__main__"})
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 0)


def _forget_configuration() -> None:
    """Undo what modules have set that are imported again."""
    sys.stderr = sys.__stderr__
    logging.captureWarnings(False)
    logging.basicConfig(level="WARNING", handlers=[], force=True)
    warnings.formatwarning = _formatwarning
    sys.setswitchinterval(_SWITCH_SECONDS)
    for name in _CONFIGURING:
        sys.modules.pop(name, None)


_formatwarning = warnings.formatwarning


def main(kind: str, address: str, owner: int) -> None:
    """Serve until the owner ends; a fork goes on as a program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    del sys.path[0]  # this folder
    os.environ.update(_VARIABLES)
    for module in _IMPORTED[kind]:
        importlib.import_module(module)
    _forget_configuration()
    gc.collect()
    gc.freeze()
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
    _run_to_end(request.arguments)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

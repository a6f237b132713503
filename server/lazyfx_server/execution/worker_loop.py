"""The main loop of a worker process: take a job, run it, answer, repeat."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Final

from lazyfx_server.execution.executor import JobFunction
from lazyfx_server.execution.frames import Kind, pack_error
from lazyfx_server.execution.job_calls import set_server_call
from lazyfx_server.execution.worker_connection import Channel

# The number of new objects that triggers a collection within a job: about 30 MB of graph.
_YOUNG_OBJECTS: Final = 200_000
# The niceness of workers relative to the server process, which answers hits.
_NICENESS: Final = 5


def serve(
    connection: socket.socket,
    function: JobFunction,
    initializer: Callable[[], None] | None,
    max_result_bytes: int,
) -> None:
    """Runs jobs until the server closes the connection.

    Args:
        connection: The worker's end of the socket.
        function: Called with each job; what it returns is the result.
        initializer: Called once before the first job.
        max_result_bytes: Larger results are refused.
    """
    _start_own_session()
    _kill_with_server()
    _close_inherited_pipes()
    # Graphs are full of cycles and live as long as their job, so collections took a quarter of a
    # job's time. Garbage is collected after the answer is sent.
    gc.set_threshold(_YOUNG_OBJECTS)
    channel = Channel(connection)
    set_server_call(channel.call)
    try:
        if initializer is not None:
            initializer()
    except Exception as error:  # noqa: BLE001 - whatever it is, the server must hear of it
        traceback.print_exc()
        channel.send(Kind.START_FAILED, pack_error(error))
        return
    with contextlib.suppress(OSError):  # the server is gone
        channel.send(Kind.READY)
        while (job := channel.next_job()) is not None:
            channel.send(Kind.STARTED)
            kind, body = _answer(function, job, max_result_bytes)
            del job
            channel.send(kind, body)
            del body
            gc.collect()


def _answer(function: JobFunction, job: bytes, max_result_bytes: int) -> tuple[Kind, bytes]:
    try:
        result: object = function(job)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a job may raise anything; only it fails
        traceback.print_exc()
        return Kind.FAILED, pack_error(error)
    if not isinstance(result, bytes):
        what = f"the job function returned {type(result).__qualname__}, not bytes"
        return Kind.FAILED, pack_error(TypeError(what))
    if len(result) > max_result_bytes:
        return Kind.TOO_LARGE, str(len(result)).encode("ascii")
    return Kind.RESULT, result


def _start_own_session() -> None:
    # In its own session, Ctrl-C on the server's terminal lets running jobs finish, and killing the
    # process group also kills a job's children.
    os.setsid()
    sys.stdout.flush()
    os.dup2(2, 1)  # the server's standard output belongs to its user
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    # When memory runs out, the kernel should kill the worker, not the server.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    multiprocessing.current_process().daemon = False  # a job may start processes of its own


def _kill_with_server() -> None:
    """Have this process group killed when the server exits, for whatever reason.

    PR_SET_PDEATHSIG would watch the fork server, which lives as long as its workers do. Instead the
    kernel watches the pipe that multiprocessing keeps open in the server: it sends SIGKILL to the
    whole group on any event on that pipe, and the only possible event is its closing. This works
    even while native code holds the GIL.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are started by multiprocessing"
    lifeline = parent.sentinel
    try:
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
    except OSError:  # some sandboxed kernels lack it: the next best option
        watcher = threading.Thread(target=_wait_for_end, args=(lifeline,), daemon=True)
        watcher.start()
        return
    if select.select([lifeline], [], [], 0)[0]:  # the server is already gone
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _close_inherited_pipes() -> None:
    """Close the pipes to multiprocessing's own processes, which a worker must not use.

    A byte in one stops the fork server; messages in the other unlink shared memory.
    """
    if getattr(forkserver._forkserver, "_forkserver_alive_fd", None) is None:  # noqa: SLF001 - it has no other
        return  # not forked: libraries that were imported here still tell the resource tracker
    for holder, name in (
        (forkserver._forkserver, "_forkserver_alive_fd"),  # noqa: SLF001 - it has no other
        (resource_tracker._resource_tracker, "_fd"),  # noqa: SLF001 - likewise
    ):
        descriptor = getattr(holder, name, None)
        if descriptor is not None:
            setattr(holder, name, None)
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _wait_for_end(lifeline: int) -> None:
    select.select([lifeline], [], [])
    os.killpg(os.getpgrp(), signal.SIGKILL)

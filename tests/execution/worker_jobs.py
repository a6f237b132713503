"""Job functions for executor tests. Workers import this module by name."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import util
from pathlib import Path

from lazyfx_server.execution import CallFailed, call_server
from lazyfx_server.security.sandbox import Policy, available, enter, readable_paths


def run(job: bytes) -> bytes:
    """Does what an order in JSON says."""
    order = json.loads(job) if job else {"do": "nothing"}
    return ORDERS[order.pop("do")](**order)


def nothing() -> bytes:
    return b""


def echo(text: str) -> bytes:
    return text.encode()


def temporary_folder() -> bytes:
    """Use the folder where multiprocessing puts the files of this process."""
    folder = Path(util.get_temp_dir())
    (folder / "file").touch()
    shutil.rmtree(folder)
    return b"used"


def big(size: int) -> bytes:
    return bytes(range(256)) * (size // 256) + b"x" * (size % 256)


def fail(message: str) -> bytes:
    raise LookupError(message)


def leave(status: int) -> bytes:
    sys.exit(status)


def wrong_type() -> bytes:
    return "not bytes"  # type: ignore[return-value]


def abort() -> bytes:
    os.abort()


def segfault() -> bytes:
    ctypes.string_at(0)
    return b""


def kill_self() -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b""


def vanish() -> bytes:
    os._exit(3)


def let_go_and_hang() -> bytes:
    """Closes every descriptor by which its server would notice its end, and continues."""
    os.closerange(3, 1024)
    time.sleep(3600)
    return b""


def sleep(seconds: float, touch: str = "") -> bytes:
    if touch:
        Path(touch).write_text(str(os.getpid()))
    time.sleep(seconds)
    return b"slept"


def hang_in_native_code(touch: str) -> bytes:
    """Never lets go of the interpreter lock."""
    Path(touch).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(3600)
    return b""


def spin() -> bytes:
    while True:
        pass


def ignore_signals_and_hang() -> bytes:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(3600)
    return b""


def have_children(touch: str, then: str) -> bytes:
    """Leaves a child process and a forked copy behind."""
    child = subprocess.Popen(["sleep", "3600"])
    copy = os.fork()
    if not copy:
        time.sleep(3600)
        os._exit(0)
    Path(touch).write_text(json.dumps([os.getpid(), child.pid, copy]))
    if then == "crash":
        os.abort()
    time.sleep(3600)
    return b""


def modules() -> bytes:
    return json.dumps(sorted(sys.modules)).encode()


def describe() -> bytes:
    facts = {
        "pid": os.getpid(),
        "group": os.getpgrp(),
        "variable": os.environ.get("LAZYFX_TEST_VARIABLE"),
        "initialized": os.environ.get("LAZYFX_TEST_INITIALIZED"),
        "threads": threading.active_count(),
    }
    return json.dumps(facts).encode()


def say(text: str) -> bytes:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    return b""


def allocate(size: int) -> bytes:
    return str(len(bytearray(size))).encode()


def open_socket() -> bytes:
    socket.socket().close()
    return b"opened"


def confine() -> None:
    """As workers that run passes are, with less memory."""
    enter(Policy(available(), MEMORY, readable_paths()))


MEMORY = 64 << 20


def initialize() -> None:
    os.environ["LAZYFX_TEST_INITIALIZED"] = "yes"


def refuse_to_start() -> None:
    raise RuntimeError("no accelerator here")


def die_at_start() -> None:
    os._exit(9)


STOP_SIGN = Path(tempfile.gettempdir()) / f"lazyfx-test-stop-sign-{os.getuid()}"


def initialize_unless_refused() -> None:
    if STOP_SIGN.exists():
        raise RuntimeError("told not to")


def ask(text: str) -> bytes:
    return call_server(text.encode())


def ask_and_say_why_not(text: str) -> bytes:
    try:
        return call_server(text.encode())
    except CallFailed as failure:
        return str(failure).encode()


def ask_from_threads(count: int) -> bytes:
    answers: dict[int, bytes] = {}

    def one(number: int) -> None:
        answers[number] = call_server(f"{number}".encode())

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return b",".join(answers[number] for number in range(count))


def ask_for_ever() -> bytes:
    while True:
        call_server(b"again")


def ask_much(size: int) -> bytes:
    return call_server(bytes(size))


ORDERS = {
    function.__name__: function
    for function in (
        nothing,
        echo,
        temporary_folder,
        big,
        fail,
        leave,
        wrong_type,
        abort,
        segfault,
        kill_self,
        vanish,
        let_go_and_hang,
        sleep,
        hang_in_native_code,
        ignore_signals_and_hang,
        spin,
        allocate,
        open_socket,
        have_children,
        modules,
        describe,
        say,
        ask,
        ask_and_say_why_not,
        ask_from_threads,
        ask_for_ever,
        ask_much,
    )
}

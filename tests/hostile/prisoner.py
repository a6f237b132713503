"""What malicious code in a worker would try. Workers import this module by name."""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)


def run(job: bytes) -> bytes:
    """Try one thing; answer with the error that stopped it, or "done"."""
    order = json.loads(job)
    try:
        found = ATTEMPTS[order.pop("do")](**order)
    except (OSError, ValueError, MemoryError, ImportError, LookupError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}".encode()
    return f"done {found or ''}".strip().encode()


def _call(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def read(path: str) -> str:
    return Path(path).read_text()[:20]


def write(path: str) -> None:
    Path(path).write_text("was here")


def append_to_stderr_s_file() -> None:
    os.open("/proc/self/fd/2", os.O_WRONLY)


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def execute() -> None:
    os.execv("/bin/true", ["/bin/true"])


def connect(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


def unix_socket() -> None:
    socket.socket(socket.AF_UNIX)


def socket_pair() -> None:
    socket.socketpair()


def executable_memory() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def made_executable() -> None:
    memory = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _call(LIBC.mprotect(ctypes.c_void_p(address), 4096, mmap.PROT_READ | mmap.PROT_EXEC))


def load_library(path: str) -> None:
    ctypes.CDLL(path)


def memory_file() -> None:
    os.memfd_create("program")


def end_the_server(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


def have_the_server_signalled(pid: int) -> None:
    fcntl.fcntl(0, fcntl.F_SETOWN, pid)


def read_the_server_s_memory(pid: int) -> None:
    Path(f"/proc/{pid}/mem").open("rb").close()


def trace_the_server(pid: int) -> None:
    _call(LIBC.ptrace(16, pid, 0, 0))


def vm_read(pid: int) -> None:
    _call(LIBC.process_vm_readv(pid, None, 0, None, 0, 0))


def raise_the_limits() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def take_memory(size: int) -> None:
    bytearray(size)


def spin() -> None:
    while True:
        pass


def a_thread() -> str:
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append("ran"))
    thread.start()
    thread.join()
    return answers[0]


def import_something() -> str:
    import colorsys  # a Python module of the standard library that is not imported yet

    return colorsys.__name__


def pid() -> str:
    return str(os.getpid())


def environment() -> str:
    return sys.version.split()[0]


ATTEMPTS: dict[str, Callable[..., str | None]] = {
    function.__name__: function
    for function in (
        read, write, append_to_stderr_s_file, fork, execute, connect, unix_socket, socket_pair,
        executable_memory, made_executable, load_library, memory_file, end_the_server,
        have_the_server_signalled, read_the_server_s_memory, trace_the_server, vm_read,
        raise_the_limits, take_memory, spin, a_thread, import_something, pid, environment,
    )
}  # fmt: skip

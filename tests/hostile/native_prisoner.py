"""What malicious code in a native worker would try. Workers import this module by name.

Unlike in a worker that runs passes, it may write to its folder and load what it has written.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from lazyfx_server.execution import CallFailed, call_server
from lazyfx_server.jobs.native.confinement import Confinement
from lazyfx_server.v1 import worker_pb2 as worker

LIBC = ctypes.CDLL(None, use_errno=True)
_FOLDER = Path()


def lock_up(confinement: Confinement, folder: str) -> None:
    """What a native worker does before its job."""
    global _FOLDER
    _FOLDER = Path(folder)
    confinement.enter(_FOLDER)


def run(job: bytes) -> bytes:
    """Try one thing; answer with the error that stopped it, or "done"."""
    order = json.loads(job)
    try:
        found = ATTEMPTS[order.pop("do")](**order)
    except (
        OSError, ValueError, MemoryError, ImportError, LookupError, RuntimeError, CallFailed,
        subprocess.SubprocessError, AttributeError,
    ) as error:  # fmt: skip
        return f"{type(error).__name__}: {error}".encode()
    return f"done {found or ''}".strip().encode()


def _call(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _system_call(number: int, *arguments: int) -> None:
    _call(LIBC.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)))


def read(path: str) -> str:
    return Path(path).read_bytes()[:20].hex()


def list_folder(path: str) -> str:
    return str(os.listdir(path)[:3])  # noqa: PTH208 - what is tried


def write(path: str) -> None:
    Path(path).write_text("was here")


def append(path: str) -> None:
    with Path(path).open("a") as file:
        file.write("was here")


def make_folder(path: str) -> None:
    Path(path).mkdir()


def remove(path: str) -> None:
    Path(path).unlink()


def truncate(path: str) -> None:
    os.truncate(path, 0)


def rename(old: str, new: str) -> None:
    Path(old).rename(new)


def rename_out(path: str) -> None:
    own = _FOLDER / "own"
    own.write_text("was here")
    own.rename(path)


def symbolic_link(path: str) -> str:
    link = _FOLDER / f"link{abs(hash(path))}"
    link.symlink_to(path)
    return link.read_bytes()[:20].hex()


def hard_link(path: str) -> str:
    link = _FOLDER / "hard"
    os.link(path, link)
    return link.read_bytes()[:20].hex()


def change_mode(path: str) -> str:
    Path(path).chmod(0o777)
    if Path(path).stat().st_mode & 0o777 != 0o777:
        raise OSError("the mode is what it was")
    return "changed"


def change_owner(path: str) -> None:
    os.chown(path, 1, 1)


def pipe_file() -> None:
    os.mkfifo(_FOLDER / "pipe")


def device_file() -> None:
    os.mknod(_FOLDER / "device", 0o20666, os.makedev(1, 1))


def unix_socket_file() -> None:
    socket.socket(socket.AF_UNIX).bind(str(_FOLDER / "socket"))


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def vfork() -> None:
    _system_call(58)


def a_process_by_clone() -> None:
    _system_call(56, signal.SIGCHLD, 0, 0, 0, 0)


def namespaces_by_clone3() -> None:
    _system_call(435, 0, 88)


def execute(path: str = "/bin/true") -> None:
    os.execv(path, [path])


def spawn() -> None:
    os.posix_spawn("/bin/true", ["/bin/true"], {})


def start_the_compiler() -> None:
    subprocess.run(["g++", "--version"], check=True)


def run_an_own_program() -> None:
    program = _FOLDER / "program"
    program.write_bytes(Path(sys.executable).resolve().read_bytes())
    os.execv(program, [str(program)])


def program_in_memory() -> None:
    os.memfd_create("program")


def connect(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


def socket_of(family: int, kind: int = 1, protocol: int = 0) -> None:
    socket.socket(family, kind, protocol)


def socket_pair() -> None:
    socket.socketpair()


def send_a_file_descriptor() -> None:
    _system_call(46, _connection(), 0, 0)  # sendmsg


def receive_a_file_descriptor() -> None:
    _system_call(47, _connection(), 0, 0)  # recvmsg


def bind_again() -> None:
    _system_call(49, _connection(), 0, 0)


def _connection() -> int:
    for number in range(3, 64):
        with contextlib.suppress(OSError):
            if os.path.exists(f"/dev/fd/{number}") or fcntl.fcntl(number, fcntl.F_GETFD) >= 0:  # noqa: PTH110
                return number
    return 3


def load_library(path: str) -> None:
    ctypes.CDLL(path)


def signal_to(pid: int, number: int = signal.SIGCONT) -> None:
    os.kill(pid, number)


def signal_to_thread(pid: int) -> None:
    _system_call(200, pid, signal.SIGCONT)  # tkill


def queue_signal(pid: int) -> None:
    _system_call(129, pid, signal.SIGCONT, 0)


def have_signalled(pid: int) -> None:
    fcntl.fcntl(0, fcntl.F_SETOWN, pid)


def file_descriptor_of(pid: int) -> None:
    os.pidfd_open(pid)


def trace(pid: int) -> None:
    _call(LIBC.ptrace(16, pid, 0, 0))


def be_traced() -> None:
    _call(LIBC.ptrace(0, 0, 0, 0))


def vm_read(pid: int) -> None:
    _call(LIBC.process_vm_readv(pid, None, 0, None, 0, 0))


def vm_write(pid: int) -> None:
    _call(LIBC.process_vm_writev(pid, None, 0, None, 0, 0))


def system_call(number: int, arguments: list[int]) -> None:
    _system_call(number, *arguments)


def shared_memory() -> None:
    descriptor = LIBC.shm_open(b"/lazyfx-marker", os.O_CREAT | os.O_RDWR, 0o600)
    _call(descriptor)


def raise_the_limits() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def bound_of_another(pid: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1))


def be_dumpable() -> None:
    _call(LIBC.prctl(4, 1, 0, 0, 0))


def take_memory(size: int) -> None:
    mmap.mmap(-1, size)


def a_large_file() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    descriptor = os.open(_FOLDER / "large", os.O_CREAT | os.O_RDWR)
    os.ftruncate(descriptor, 1 << 40)


def other_descriptors() -> str:
    """Pipes and sockets that are neither the connection, nor the lifeline, nor standard streams."""
    found = []
    for number in range(3, 256):
        try:
            mode = os.fstat(number).st_mode & 0o170000
        except OSError:
            continue
        if mode in (0o140000, 0o010000):
            found.append({0o140000: "socket", 0o010000: "pipe"}[mode])
    if sorted(found) == ["pipe", "socket"]:
        raise OSError("nothing but the connection and the lifeline")
    return str(found)


def ask(**words: object) -> None:
    """A compile, as a valid request."""
    source = str(words.pop("source", 'extern "C" int f() { return 1; }'))
    request = worker.BuildRequest(source=source.encode(), kind=worker.BUILD_KIND_LIBRARY)
    for name, value in words.items():
        if name == "objects":
            request.objects.extend(str(item).encode() for item in value)  # type: ignore[attr-defined]
        elif isinstance(value, list):
            getattr(request, name).extend(value)
        else:
            setattr(request, name, value)
    if request.kind == worker.BUILD_KIND_LINK:
        request.source = b""
    result = worker.BuildResult.FromString(call_server(request.SerializeToString()))
    if result.failed:
        raise OSError(f"the compiler: {result.failed[:200]}")


def ask_bytes(size: int) -> None:
    call_server(bytes(size))


# What it has to be able to do.
def a_thread() -> str:
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append("ran"))
    thread.start()
    thread.join()
    return answers[0]


def own_files() -> str:
    path = _FOLDER / "a" / "b"
    path.parent.mkdir()
    path.write_text("x")
    path.rename(_FOLDER / "c")
    (_FOLDER / "c").unlink()
    path.parent.rmdir()
    return "ok"


def compile_and_load() -> str:
    request = worker.BuildRequest(
        kind=worker.BUILD_KIND_LIBRARY,
        source=b'extern "C" int f() { return 42; }',
        flags=["-O1", "-fPIC"],
    )
    result = worker.BuildResult.FromString(call_server(request.SerializeToString()))
    path = _FOLDER / "library.so"
    path.write_bytes(result.output)
    return str(ctypes.CDLL(str(path)).f())


ATTEMPTS: dict[str, Callable[..., str | None]] = {
    name: value
    for name, value in list(globals().items())
    if callable(value) and getattr(value, "__module__", "") == __name__ and name[0] != "_"
}

"""A compromised native worker can only reach its folder and a compiler with a closed vocabulary."""

from __future__ import annotations

import asyncio
import json
import multiprocessing.forkserver
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import native_prisoner
import pytest

from lazyfx_server.compiling.dispatch.builds import Builds
from lazyfx_server.compiling.flights.fleet_flights import FleetFlights, FleetSettings
from lazyfx_server.compiling.kernels.kernel_flights import KernelFlights
from lazyfx_server.compiling.kernels.kernel_store import KernelStore
from lazyfx_server.execution import (
    CallBounds,
    ExecutionError,
    ForkServer,
    ProcessExecutor,
    WorkerCrashed,
    start_forkserver,
)
from lazyfx_server.jobs.native.confinement import build_confinement, job_confinement
from lazyfx_server.jobs.native.toolchain.build_job import run_compile_job
from lazyfx_server.jobs.native.toolchain.compiler import Compiler, find_compiler
from lazyfx_server.jobs.native.work_area import WorkArea
from lazyfx_server.security.sandbox import LAYERS, available
from lazyfx_server.store import MemoryStore
from lazyfx_server.telemetry import Observers

Order = dict[str, object]

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or available() != LAYERS,
    reason="needs g++, and a kernel with every layer",
)
MEMORY = 8 << 30


@pytest.fixture(scope="module", autouse=True)
def _no_earlier_fork_server() -> None:
    """Python keeps one a process: another file's has not imported what a native worker needs."""
    ForkServer.kill()
    pid = getattr(multiprocessing.forkserver, "_forkserver")._forkserver_pid  # noqa: B009
    if pid is not None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return find_compiler()


@pytest.fixture
def area(tmp_path: Path) -> Iterator[WorkArea]:
    made = WorkArea(tmp_path / "area")
    yield made
    made.close()


def kernel_flights() -> KernelFlights:
    """As a server provides kernels, which a worker may try to have replaced."""
    kernels = KernelStore(MemoryStore(1 << 24), bytes(32), lambda: None)
    return KernelFlights(
        kernels, FleetFlights(None, None, Observers(), FleetSettings()), Observers()
    )


def tried(
    orders: list[Order],
    compiler: Compiler,
    area: WorkArea,
    bounds: CallBounds | None = None,
    scope: bytes | None = b"",
) -> list[str]:
    """The answers of a confined native worker to these orders."""
    folder = area.folder("jobs", "prisoner")
    jobs = job_confinement(available(), MEMORY, None, compiler)

    async def run() -> list[str]:
        forked = start_forkserver(
            ["lazyfx_server.jobs.native.ahead.inductor_preload"], {"OMP_NUM_THREADS": "1"}
        )
        workers = ProcessExecutor(
            native_prisoner.run, processes=forked, workers=1, calls=bounds,
            initializer=partial(native_prisoner.lock_up, jobs, str(folder)),
        )  # fmt: skip
        compilers = ProcessExecutor(
            partial(run_compile_job, compiler, build_confinement(available(), MEMORY, None, compiler)),
            processes=forked, workers=1, max_jobs=1,
        )  # fmt: skip
        builds = Builds(compilers, compiler, 120, area, Observers(), None, kernel_flights())
        try:
            await workers.start()
            await compilers.start()
            session = builds.session(scope)
            answers = []
            for order in orders:
                job = json.dumps(order).encode()
                try:
                    answer = await workers.run(job, timeout=120, on_call=session)
                except ExecutionError as error:
                    answer = f"{type(error).__name__}: {error}".encode()
                answers.append(answer.decode())
            return answers
        finally:
            await workers.close()
            await compilers.close()

    return asyncio.run(run())


def test_a_native_worker_can_do_what_its_job_needs(compiler: Compiler, area: WorkArea) -> None:
    orders: list[Order] = [{"do": "a_thread"}, {"do": "own_files"}, {"do": "compile_and_load"}]
    assert tried(orders, compiler, area) == ["done ran", "done ok", "done 42"]


def test_a_compiler_behind_a_script_compiles_confined(
    tmp_path: Path, area: WorkArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, marker = tmp_path / "g++", tmp_path / "marker"
    script.write_text(
        f'#!/usr/bin/env bash\ntouch {marker}\nexec {shutil.which("g++")} "$@"\n', "utf-8"
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    wrapped = find_compiler()
    marker.unlink()  # it was asked about itself, outside of any sandbox
    assert tried([{"do": "compile_and_load"}], wrapped, area, scope=None) == ["done 42"]
    assert not marker.exists()


def files_and_folders(secret: Path, marker: Path, other: Path) -> list[Order]:
    """Ways to read or change what is not the job's."""
    server = os.getpid()
    reads = [
        str(secret), "/etc/passwd", "/etc/shadow", "/proc/self/environ",
        f"/proc/{server}/environ", f"/proc/{server}/mem", f"/proc/{server}/maps",
        f"/proc/{server}/cmdline", "/proc/1/environ", str(Path.cwd() / "pyproject.toml"),
        "/proc/kallsyms", "/proc/keys",
    ]  # fmt: skip
    return [
        *({"do": "read", "path": path} for path in reads),
        {"do": "list_folder", "path": str(secret.parent)},
        {"do": "list_folder", "path": "/tmp"},
        {"do": "list_folder", "path": f"/proc/{server}/fd"},
        {"do": "read", "path": str(other / "library.so")},
        {"do": "load_library", "path": str(other / "library.so")},
        {"do": "write", "path": str(marker)},
        {"do": "write", "path": str(other / "marker")},
        {"do": "write", "path": "/tmp/lazyfx-marker"},
        {"do": "write", "path": "/dev/shm/lazyfx-marker"},
        {"do": "write", "path": str(Path(sys.prefix) / "lazyfx-marker")},
        {"do": "append", "path": str(secret)},
        {"do": "append", "path": "/proc/self/fd/2"},
        {"do": "make_folder", "path": str(marker)},
        {"do": "remove", "path": str(secret)},
        {"do": "truncate", "path": str(secret)},
        {"do": "rename", "old": str(secret), "new": str(marker)},
        {"do": "rename_out", "path": str(marker)},
        {"do": "symbolic_link", "path": str(secret)},
        {"do": "symbolic_link", "path": "/etc/passwd"},
        {"do": "hard_link", "path": str(secret)},
        {"do": "hard_link", "path": "/etc/passwd"},
        {"do": "change_mode", "path": str(secret)},
        {"do": "change_mode", "path": sys.executable},
        {"do": "change_owner", "path": str(secret)},
        {"do": "pipe_file"},
        {"do": "device_file"},
        {"do": "unix_socket_file"},
        {"do": "shared_memory"},
        {"do": "a_large_file"},
        {"do": "other_descriptors"},
    ]


def processes_and_sockets(port: int) -> list[Order]:
    """Ways to other processes, machines and parts of the kernel."""
    server = os.getpid()
    kernel = {
        "mount": (165, [0, 0, 0, 0, 0]), "unshare": (272, [0x10000000]), "chroot": (161, [0]),
        "keyctl": (250, [0, 0, 0, 0, 0]), "add_key": (248, [0, 0, 0, 0, 0]),
        "bpf": (321, [0, 0, 0]), "io_uring": (425, [1, 0]), "perf": (298, [0, 0, -1, -1, 0]),
        "userfault": (323, [0]), "seccomp": (317, [1, 0, 0]), "landlock": (444, [0, 0, 1]),
        "setuid": (105, [0]), "setns": (308, [3, 0]), "personality": (135, [0x0040000]),
        "shmget": (29, [0, 4096, 0o1666]), "msgget": (68, [0, 0o1666]), "execveat": (322, [0] * 5),
        "open_by_handle": (304, [0, 0, 0]), "module": (175, [0, 0, 0]), "setsid": (112, []),
        "openat2": (437, [-100, 0, 0, 0]), "pidfd_getfd": (438, [3, 0, 0]), "chdir": (80, [0]),
    }  # fmt: skip
    calls: list[Order] = [
        {"do": "system_call", "number": number, "arguments": arguments}
        for number, arguments in kernel.values()
    ]
    if os.uname().machine != "x86_64":
        calls = []  # their numbers differ; `test_filter.py` has those
    return [
        *calls,
        {"do": "fork"}, {"do": "vfork"}, {"do": "a_process_by_clone"},
        {"do": "namespaces_by_clone3"}, {"do": "execute"}, {"do": "spawn"},
        {"do": "execute", "path": sys.executable}, {"do": "start_the_compiler"},
        {"do": "run_an_own_program"}, {"do": "program_in_memory"},
        {"do": "connect", "port": port}, {"do": "socket_of", "family": socket.AF_UNIX},
        {"do": "socket_of", "family": socket.AF_INET, "kind": socket.SOCK_DGRAM},
        {"do": "socket_of", "family": socket.AF_NETLINK, "kind": socket.SOCK_RAW},
        {"do": "socket_of", "family": 38, "kind": 5}, {"do": "socket_pair"},
        {"do": "send_a_file_descriptor"}, {"do": "receive_a_file_descriptor"},
        {"do": "bind_again"},
        *({"do": do, "pid": server} for do in (
            "signal_to", "signal_to_thread", "queue_signal", "have_signalled",
            "file_descriptor_of", "trace", "vm_read", "vm_write", "bound_of_another",
        )),
        {"do": "signal_to", "pid": -1, "number": 0}, {"do": "be_traced"},
        {"do": "raise_the_limits"}, {"do": "be_dumpable"}, {"do": "take_memory", "size": 1 << 36},
    ]  # fmt: skip


FLAGS = [
    "-fplugin=/tmp/x.so", "-B/tmp", "-specs=/tmp/specs", "@/etc/passwd", "-wrapper", "-o/tmp/x",
    "-I/etc", "-include/etc/passwd", "-imacros/etc/passwd", "-Wl,-rpath,/tmp", "-Wa,-I/etc",
    "-Wp,-MD,/tmp/x", "-save-temps", "-fdump-tree-all", "-ffp-contract=off -o /tmp/x",
    "-ffp-contract=$(touch /tmp/x)", "-D'X=`id`'", "-DX=1", "-x", "-L/tmp", "-l:evil.so",
    "--sysroot=/tmp", "-march=native;id", "-O3\n-o/tmp/x", "", "-", "-fprofile-use=/etc/passwd",
    "-std=c++20 ", "-\u0000", "-fopenmp-targets=x",
]  # fmt: skip


def compiles(secret: Path) -> list[Order]:
    """Compiles that no job of ours asks for."""
    sources = [
        '#include "/etc/passwd"\n', f'#include "{secret}"\n', '#include "../../../etc/passwd"\n',
        f'__asm__(".incbin \\"{secret}\\"");\n',
    ]  # fmt: skip
    return [
        *({"do": "ask", "flags": [flag]} for flag in FLAGS),
        *({"do": "ask", "source": source} for source in sources),
        {"do": "ask", "header": "/etc/passwd"},
        {"do": "ask", "header": "torch/../../../../etc/passwd"},
        {"do": "ask", "libraries": ["dl"]},
        {"do": "ask", "libraries": [":/tmp/evil.so"]},
        {"do": "ask", "kind": 5, "header": "torch/csrc/inductor/cpp_prefix.h"},
        {"do": "ask", "kind": 77},
        {"do": "ask", "kind": 3, "source": f'.incbin "{secret}"\n'},
        {"do": "ask", "kind": 3, "source": "\tsyscall\n"},
        {"do": "ask", "kind": 3, "source": '#include "/etc/passwd"\n'},
        {"do": "ask", "kind": 4, "objects": ["x" * 32]},
        {"do": "ask", "kind": 4, "objects": ["/etc/passwd"]},
        {"do": "ask_bytes", "size": 1000},
    ]


def test_a_native_worker_reaches_nothing_but_its_folder(
    compiler: Compiler, area: WorkArea, tmp_path: Path
) -> None:
    secret = tmp_path / "keys" / "signing.pem"
    secret.parent.mkdir()
    secret.write_text("int a_secret;")
    secret.chmod(0o600)
    other = area.folder("jobs", "another")
    source = tmp_path / "library.cpp"
    source.write_text('extern "C" int f() { return 1; }')
    command = ["g++", "-shared", "-fPIC", str(source), "-o", str(other / "library.so")]
    subprocess.run(command, check=True)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        orders = [
            *files_and_folders(secret, tmp_path / "marker", other),
            *processes_and_sockets(listening.getsockname()[1]),
            *compiles(secret),
        ]
        answers = tried(orders, compiler, area)
    assert len(orders) >= 80
    reached = [
        (order, answer)
        for order, answer in zip(orders, answers, strict=True)
        if answer.startswith("done") or "a_secret" in answer or "root:" in answer
    ]
    assert reached == []
    assert secret.read_text() == "int a_secret;"
    assert secret.stat().st_mode & 0o777 == 0o600
    for path in (tmp_path / "marker", Path("/tmp/lazyfx-marker"), Path("/dev/shm/lazyfx-marker")):
        assert not path.exists()


def test_what_got_past_the_checks_of_sources_reads_nothing(
    compiler: Compiler, area: WorkArea, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's own confinement, with the check of sources out of the way."""
    secret = tmp_path / "secret.h"
    secret.write_text("int a_secret;")
    folder = area.folder("builds", "alone")
    source = folder / "source.cpp"
    confined = build_confinement(available(), MEMORY, None, compiler)
    for text in (
        f'#include "{secret}"', '#include "/etc/passwd"',
        f'asm(".section .data\\n.incbin \\"{secret}\\"");',
        f'#if __has_include("{secret}")\nint found;\n#else\n#error missing\n#endif',
        f'#include "{pytest.__file__}"',
    ):  # fmt: skip
        source.write_text(text)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                confined.enter(folder)
                command = [compiler.path, "-c", source.name, "-o", "made"]
                done = subprocess.run(
                    command, cwd=folder, stderr=subprocess.DEVNULL, env={"TMPDIR": str(folder)}
                )
                status = 7 if done.returncode else 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7, text
        assert not (folder / "made").exists()


def test_a_flood_of_compiles_ends_the_job(compiler: Compiler, area: WorkArea) -> None:
    orders: list[Order] = [{"do": "ask", "flags": ["-x"]}] * 3 + [
        {"do": "ask_bytes", "size": 1 << 21}
    ]
    answers = tried(orders, compiler, area, CallBounds(calls=1, bytes=1 << 20))
    assert all("not allowed" in answer for answer in answers[:3])
    assert answers[3].startswith(WorkerCrashed.__name__)


def test_a_job_s_objects_are_no_other_job_s(compiler: Compiler, area: WorkArea) -> None:
    from inline_executor import InlineExecutor

    from lazyfx_server.execution import CallRefused
    from lazyfx_server.jobs.native.confinement import Confinement
    from lazyfx_server.v1 import worker_pb2 as worker

    async def run() -> None:
        executor = InlineExecutor(partial(run_compile_job, compiler, Confinement(None)))
        await executor.start()
        builds = Builds(executor, compiler, 120, area, Observers())
        one, two = builds.session(), builds.session()
        source = b'extern "C" int f() { return 1; }'
        request = worker.BuildRequest(
            kind=worker.BUILD_KIND_OBJECT, source=source, flags=["-fPIC", "-O1"]
        )
        made = worker.BuildResult.FromString(await one(request.SerializeToString()))
        link = worker.BuildRequest(kind=worker.BUILD_KIND_LINK, objects=[made.key])
        linked = worker.BuildResult.FromString(await one(link.SerializeToString()))
        assert linked.output[:4] == b"\x7fELF"
        with pytest.raises(CallRefused, match="not built for this job"):
            await two(link.SerializeToString())
        assert one.has_made(linked.output)
        assert not one.has_made(linked.output + b"\0")
        assert not two.has_made(linked.output)
        for code in (".text", '.section .init,"a"', ".section .text.x", ".section .init.array"):
            data = f"\t{code}\n\t.byte 204\n".encode()
            asked = worker.BuildRequest(kind=worker.BUILD_KIND_DATA, source=data)
            with pytest.raises(CallRefused, match="assembler"):
                await one(asked.SerializeToString())
        await executor.close()

    asyncio.run(run())

"""A compromised native worker can only reach its folder and a compiler with a closed vocabulary."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing.forkserver
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import native_prisoner
import pytest
from server.harness import worker_pids

from lazyfx_server.compiling.dispatch.builds import Builds
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
from lazyfx_server.security.signing import read_keys
from lazyfx_server.telemetry import Observers

if TYPE_CHECKING:
    from servers import RunningServer

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


def tried(
    orders: list[Order], compiler: Compiler, area: WorkArea, bounds: CallBounds | None = None
) -> list[str]:
    """The answers of a confined native worker to these orders."""
    folder = area.folder("jobs", "prisoner")
    jobs = job_confinement(available(), MEMORY, None, compiler)

    async def run() -> list[str]:
        forked = start_forkserver(
            ["lazyfx_server.jobs.native.inductor_preload"], {"OMP_NUM_THREADS": "1"}
        )
        workers = ProcessExecutor(
            native_prisoner.run, processes=forked, workers=1, calls=bounds,
            initializer=partial(native_prisoner.lock_up, jobs, str(folder)),
        )  # fmt: skip
        compilers = ProcessExecutor(
            partial(run_compile_job, compiler, build_confinement(available(), MEMORY, None, compiler)),
            processes=forked, workers=1, max_jobs=1,
        )  # fmt: skip
        builds = Builds(compilers, compiler, 120, area, Observers())
        try:
            await workers.start()
            await compilers.start()
            session = builds.session()
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
    assert tried([{"do": "compile_and_load"}], wrapped, area) == ["done 42"]
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


def test_what_a_dead_server_left_is_removed(tmp_path: Path) -> None:
    living = WorkArea(tmp_path / "base")
    program = (
        "import sys, time; from pathlib import Path\n"
        "from lazyfx_server.jobs.native.work_area import WorkArea\n"
        "print(WorkArea(Path(sys.argv[1])).folder('jobs', 'x'), flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "base")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        assert left.is_dir()
        process.kill()
        process.wait(10)
    assert left.is_dir()
    after = WorkArea(tmp_path / "base")
    assert not left.exists()
    assert living.root.is_dir()
    after.close()
    living.close()
    assert list((tmp_path / "base").iterdir()) == []


def memory_holds(pid: int, needles: list[bytes]) -> bool:
    """Whether what a process can write to holds one of these bytes."""
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights = line.split()[:2]
            if not rights.startswith("rw"):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            try:
                memory.seek(start)
                data = memory.read(end - start)
            except (OSError, ValueError, OverflowError):
                continue
            if any(needle in data for needle in needles):
                return True
    return False


def test_no_process_but_the_server_has_the_signing_key(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root reads the memory of confined processes")
    key_file = tmp_path / "signing.pem"
    flags = ("--native", "--workers", "1", "--signing-key", str(key_file))
    server = launch(*flags, own_interpreter=True)
    key = read_keys(key_file)[0].private_bytes_raw()
    needles = [key, key_file.read_bytes().splitlines()[1]]
    assert until(lambda: len(worker_pids(server.pid)) >= 3, 60), "for passes, jobs and compiles"
    others = worker_pids(server.pid)
    assert [pid for pid in others if memory_holds(pid, needles)] == []
    assert memory_holds(server.pid, needles), "or the test looks for the wrong bytes"
    for pid in others:
        assert str(key_file) not in Path(f"/proc/{pid}/environ").read_text()
        opened = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
        assert not any(str(tmp_path) in path for path in opened)


def test_a_server_killed_while_it_compiles_leaves_no_compiler_and_no_folder(
    tmp_path: Path,
) -> None:
    """It compiles a probe before it serves."""
    command = [
        sys.executable, "-m", "lazyfx_server", "--native", "--workers", "1",
        "--listen", "127.0.0.1:0", "--metrics-port", "0", "--store-path", "",
    ]  # fmt: skip
    base = tmp_path / f"lazyfx-native-{os.geteuid()}"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
        assert until(lambda: list(base.glob("server-*/builds/1/source.cpp")), 120)
        server.kill()
        server.wait(10)
    (left,) = base.iterdir()
    assert until(lambda: not running_in(left), 20), "compilers live on"
    WorkArea(base).close()
    assert list(base.iterdir()) == []


def until(holds: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def running_in(folder: Path) -> list[str]:
    """Processes whose working directory is within a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((path / "cwd").readlink()).startswith(str(folder)):
                found.append(path.name)
    return found


def test_folders_that_a_worker_closed_or_nested_are_removed(tmp_path: Path) -> None:
    """As a user for whom closed folders are closed, unlike root."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    program = """
import os, sys
from pathlib import Path
from lazyfx_server.jobs.native import work_area as area
base, outside = Path(sys.argv[1]), sys.argv[2]
if os.geteuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
job = base / "job"
(job / "closed" / "inner").mkdir(parents=True)
(job / "closed" / "inner" / "big").write_bytes(bytes(1000))
(job / "moved0").mkdir()
(job / "link").symlink_to(outside)
(job / "closed" / "link").symlink_to(outside)
os.mkfifo(job / "closed" / "fifo")
(job / "closed" / "inner").chmod(0)
(job / "closed").chmod(0o300)
deep = os.open(job, os.O_RDONLY)
for _ in range(3000):
    os.mkdir("d", dir_fd=deep)
    inner = os.open("d", os.O_RDONLY, dir_fd=deep)
    os.close(deep)
    deep = inner
area.remove(job)
print(job.exists())
"""
    base = tmp_path / "base"
    base.mkdir()
    if os.geteuid() == 0:
        for folder in (tmp_path, *tmp_path.parents):
            if not folder.stat().st_mode & 0o001:
                folder.chmod(0o711)
        os.chown(base, 65534, 65534)
    done = subprocess.run(
        [sys.executable, "-c", program, str(base), str(outside)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout == "False\n", done.stderr
    assert (outside / "kept").read_text() == "kept"

"""Native jobs and servers leave neither files, processes nor keys behind for others."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from server.harness import worker_pids

from lazyfx_server.execution import owned_folder
from lazyfx_server.jobs.native.work_area import WorkArea
from lazyfx_server.security.sandbox import LAYERS, available
from lazyfx_server.security.signing import read_keys

if TYPE_CHECKING:
    from servers import RunningServer

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or available() != LAYERS,
    reason="needs g++, and a kernel with every layer",
)


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


def test_folders_that_others_make_meanwhile_do_not_keep_a_server_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("new-a", "new-b"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))

    def with_the_other(_: Path) -> None:
        for each in tmp_path.glob("new-*"):
            each.rename(tmp_path / each.name.replace("new-", "other-"))

    monkeypatch.setattr(owned_folder, "remove", with_the_other)
    owned_folder.OwnedFolder(tmp_path)


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
from lazyfx_server.execution import owned_folder as area
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

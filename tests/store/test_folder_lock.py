"""Two servers on one store folder: only if they share a store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfx_server.folder_lock import FolderInUseError, FolderLock

HOLDER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from lazyfx_server.folder_lock import FolderLock
    lock = FolderLock(Path(sys.argv[1]), is_shared=sys.argv[2] == "shared", wait_seconds=0)
    print("locked", flush=True)
    time.sleep(600)
""")


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses the folder alone."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path), "alone"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_server_is_told_what_to_do(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(FolderInUseError) as refused:
        FolderLock(tmp_path, is_shared=False, wait_seconds=0)
    message = str(refused.value)
    assert f"(process {holder.pid})" in message
    assert "--store redis://" in message
    assert str(tmp_path) in message
    with pytest.raises(FolderInUseError, match="a server without --store"):
        FolderLock(tmp_path, is_shared=True, wait_seconds=0)


def test_a_killed_server_leaves_nothing_locked(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(60)
    FolderLock(tmp_path, is_shared=False, wait_seconds=0).release()


def test_the_successor_of_a_server_waits_for_its_end(tmp_path: Path) -> None:
    first = FolderLock(tmp_path, is_shared=False, wait_seconds=0)
    threading.Timer(0.3, first.release).start()
    FolderLock(tmp_path, is_shared=False, wait_seconds=60).release()


def test_a_lock_file_that_is_removed_while_a_server_waits_is_not_used(tmp_path: Path) -> None:
    first = FolderLock(tmp_path, is_shared=False, wait_seconds=0)

    def end() -> None:
        (tmp_path / ".server.lock").unlink()
        first.release()

    threading.Timer(0.3, end).start()
    second = FolderLock(tmp_path, is_shared=False, wait_seconds=60)
    with pytest.raises(FolderInUseError):
        FolderLock(tmp_path, is_shared=False, wait_seconds=0)
    second.release()


def test_servers_with_a_shared_store_use_a_folder_together(tmp_path: Path) -> None:
    locks = [FolderLock(tmp_path, is_shared=True, wait_seconds=0) for _ in range(2)]
    with pytest.raises(FolderInUseError, match="another server uses this folder"):
        FolderLock(tmp_path, is_shared=False, wait_seconds=0)
    for lock in locks:
        lock.release()
    FolderLock(tmp_path, is_shared=False, wait_seconds=0).release()


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_stands_in_its_place_is_refused(tmp_path: Path, kind: str) -> None:
    place, outside = tmp_path / ".server.lock", tmp_path / "outside"
    if kind == "link":
        place.symlink_to(outside)
    else:
        place.mkdir()
    with pytest.raises(FolderInUseError, match=f"remove it: {place}"):
        FolderLock(tmp_path, is_shared=False, wait_seconds=0)
    assert not outside.exists()

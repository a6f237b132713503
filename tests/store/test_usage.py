"""Counters that processes share."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from lazyfx_server.store.disk_usage import SharedUsage

ADDER = """
import sys
from pathlib import Path
from lazyfx_server.store.disk_usage import SharedUsage
usage = SharedUsage(Path(sys.argv[1]))
for _ in range(20000):
    with usage.locked():
        usage.add(1, 10)
"""


def test_no_count_is_lost_between_processes(tmp_path: Path) -> None:
    path = tmp_path / "usage"
    adders = [subprocess.Popen([sys.executable, "-c", ADDER, str(path)]) for _ in range(3)]
    assert [adder.wait(timeout=60) for adder in adders] == [0, 0, 0]
    assert SharedUsage(path).read() == (60_000, 600_000)


def test_no_count_is_lost_between_threads(tmp_path: Path) -> None:
    usage = SharedUsage(tmp_path / "usage")

    def add() -> None:
        for _ in range(5000):
            with usage.locked():
                usage.add(1, -1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert usage.read() == (20_000, 0)  # what is below 0 is an error, and not shown


def test_new_file_counts_nothing(tmp_path: Path) -> None:
    assert SharedUsage(tmp_path / "usage").read() == (0, 0)

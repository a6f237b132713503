from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path

import nursery
import pytest

DEMO = ["-m", "lazyfx.cli", "demo", "--layers", "1", "--width", "64"]


def _environment(temporary: Path) -> dict[str, str]:
    # A setting meant for the caller's own server must not reach the demo's.
    return {**os.environ, "TMPDIR": str(temporary), "LAZYFX_LISTEN": "nowhere", "COLUMNS": "140"}


def left_in(folder: Path) -> list[Path]:
    """Files, and folders of one process; the empty folder that all servers of a user share stays."""
    return [path for path in folder.glob("lazyfx-*") if path.is_file() or [*path.iterdir()]]


def test_the_demo_runs_the_main_job_and_leaves_nothing_behind(tmp_path) -> None:
    pytest.importorskip("transformers")
    result = nursery.run("torch", DEMO, env=_environment(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    text = result.stdout
    assert result.stderr == ""
    nodes = re.search(r"nodes +(\d+) -> (\d+)", text)
    assert nodes
    assert int(nodes[2]) < int(nodes[1])
    assert re.search(r"replace_pattern .* yes +1 match", text)
    assert "def forward(self, input_ids)" in text
    difference = re.search(r"absolute difference from the local model (\S+)", text)
    assert difference
    assert float(difference[1]) < 1e-4
    assert "compiled again: hit" in text
    counts = re.search(r"recompiles: (\d+) requested, (\d+) performed, (\d+) saved", text)
    assert counts
    asked, done, saved = map(int, counts.groups())
    assert saved == asked - done > 0
    assert 'lazyfx_lookups_total{result="hit"} 1' in text
    assert "_bucket" not in text
    assert not left_in(tmp_path)


def test_a_terminated_demo_stops_its_server(tmp_path) -> None:
    process = nursery.start("torch", DEMO, env=_environment(tmp_path))
    assert process.stdout is not None
    address = None
    deadline = time.monotonic() + 90
    while address is None and time.monotonic() < deadline:
        found = re.search(r"a server on (127\.0\.0\.1:\d+)", process.stdout.readline())
        address = found and found[1]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert address
    assert process.returncode == 128 + signal.SIGTERM
    assert not left_in(tmp_path)
    host, _, port = address.rpartition(":")
    with pytest.raises(ConnectionRefusedError), socket.create_connection((host, int(port))):
        pass


def test_the_width_is_a_multiple_of_64(run) -> None:
    assert run("demo", "--width", "100").exit_code == 2

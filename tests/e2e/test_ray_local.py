"""A server that starts a Ray of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import graph_of, metrics, total, wait_until
from ray_clusters import tree

import lazyfx

if TYPE_CHECKING:
    from servers import RunningServer


@pytest.mark.slow
def test_jobs_run_there_and_nothing_is_left_of_a_server_that_is_killed(
    launch: Callable[..., RunningServer],
) -> None:
    server = launch("--executor", "ray:local", "--workers", "1")
    with lazyfx.connect(server.address) as client:
        assert client.compile(graph_of(1.0)).cache.status == "miss"
        assert client.compile(graph_of(1.0)).cache.status == "hit"
        assert "seccomp" in client.server_info().sandbox.layers
    found = metrics(server.metrics_url)
    assert total(found, "lazyfx_engine_connected") == 1
    assert total(found, "lazyfx_engine_nodes", state="used") == 1
    started = tree(server.pid)
    assert len(started) > 5, "the bridge, Ray's own processes, the actor, its workers"
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(alive, started)), "all that the server had started has ended")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

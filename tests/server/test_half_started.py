"""A start that fails half-way ends what had started, in the reverse order."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from lazyfx_server.app import App
from lazyfx_server.execution import WorkerCrashed
from lazyfx_server.settings.loading import load
from lazyfx_server.workers.pools import Sources

_LISTENING = re.compile(r"listening on ([\d.]+):(\d+), metrics on http://([\d.]+):(\d+)/")


class NoProcesses:
    """A machine that has no room for another process."""

    def spawn(self, target: object, arguments: object) -> BaseProcess:
        raise OSError("no room")


def _app(store: Path, metrics_port: int) -> App:
    flags = ["--listen", "127.0.0.1:0", "--workers", "1", "--sandbox", "off", "--native", "off"]
    settings = load([*flags, "--metrics-port", str(metrics_port), "--store-path", str(store)])
    return App(settings, Sources(NoProcesses(), NoProcesses()))


def _never(address: str, metrics_url: str) -> None:
    raise AssertionError("it is not ready")


def _run(store: Path, metrics_port: int = 0) -> None:
    async def run() -> None:
        await _app(store, metrics_port).run(asyncio.Event(), _never)

    asyncio.run(run())


def test_a_server_without_workers_lets_go_of_its_ports_and_its_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lazyfx_server")
    for _ in range(2):  # the second one gets what the first one has let go of
        caplog.clear()
        with pytest.raises(WorkerCrashed, match="no room"):
            _run(tmp_path)
        assert caplog.messages[-1] == "stopped"
        assert "another server" not in caplog.text
        found = _LISTENING.search(caplog.text)
        assert found is not None
        for host, port in (found.groups()[:2], found.groups()[2:]):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, int(port)), timeout=10.0)


def test_a_port_that_is_taken_is_reported_and_nothing_else_was_started(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lazyfx_server")
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match=r"--metrics-port \d+: cannot listen there"),
    ):
        _run(tmp_path, taken.getsockname()[1])
    assert caplog.messages[-1] == "stopped"
    assert "listening" not in caplog.text

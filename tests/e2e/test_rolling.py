"""Servers are replaced under load, and clients do not notice."""

from __future__ import annotations

import asyncio
import itertools
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import DCE, PATIENCE, graph_of, metrics, total, wait_until
from replicas import Start
from servers import RunningServer
from torch.fx import GraphModule
from typing_extensions import Self

import lazyfx

_WAITING = re.compile(r"waiting up to .* another server")
_NUMBERS = itertools.count(10_000)
# Torch breaks when two threads trace at a time.
_TRACING = threading.Lock()
_SECONDS_OF_LOAD = 1.5


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Load:
    """Hits and misses by the blocking and the asynchronous client, until the end of the block."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._blocking),
            threading.Thread(target=self._blocking),
            threading.Thread(target=lambda: asyncio.run(self._asynchronous())),
        ]
        self.outcomes: Counter[str] = Counter()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _graphs(self) -> Iterator[GraphModule]:
        """Mostly the same graph, and now and then one that nobody has asked for."""
        while not self._done.is_set():
            for number in (1.0, 1.0, 1.0, float(next(_NUMBERS))):
                with _TRACING:
                    graph = graph_of(number)
                yield graph

    def _blocking(self) -> None:
        with lazyfx.connect(self._address, timeout=PATIENCE) as client:
            for graph in self._graphs():
                try:
                    remote = client.compile(graph, [DCE])
                    assert "def forward" in remote.code
                    self.outcomes[remote.cache.status] += 1
                except Exception as error:  # noqa: BLE001 - every failure counts
                    self.outcomes[f"{type(error).__name__}: {error}"] += 1

    async def _asynchronous(self) -> None:
        async with lazyfx.connect_async(self._address, timeout=PATIENCE) as client:

            async def ask() -> None:
                for graph in self._graphs():
                    try:
                        remote = await client.compile(graph, [DCE])
                        assert "def forward" in await remote.code()
                        self.outcomes[remote.cache.status] += 1
                    except Exception as error:  # noqa: BLE001 - every failure counts
                        self.outcomes[f"{type(error).__name__}: {error}"] += 1

            await asyncio.gather(*(ask() for _ in range(3)))


@pytest.mark.long
def test_a_successor_on_the_same_address_costs_no_request(
    launch: Callable[..., object], tmp_path: Path
) -> None:
    """It is started first, waits until the old server has gone, and has its store."""
    address = f"127.0.0.1:{_free_port()}"
    flags = ("--listen", address, "--workers", "1")
    old = launch(*flags, store=tmp_path / "store")
    launched: list[object] = []

    def succeed() -> None:
        launched.append(launch(*flags, "--takeover-seconds", "60", store=tmp_path / "store"))

    with Load(address) as load:
        wait_until(lambda: load.outcomes["hit"] >= 10, "some load")
        starting = threading.Thread(target=succeed)
        starting.start()
        # Long enough for it to come to the point where it waits.
        time.sleep(_SECONDS_OF_LOAD)
        old.process.send_signal(signal.SIGTERM)
        starting.join(PATIENCE)
        before = Counter(load.outcomes)
        wait_until(lambda: load.outcomes["hit"] >= before["hit"] + 20, "load on the successor")
    assert set(load.outcomes) <= {"hit", "miss", "joined"}, load.outcomes
    assert old.process.wait(PATIENCE) == 0
    (new,) = launched
    assert any(map(_WAITING.search, new.log)), "".join(new.log)
    samples = metrics(new.metrics_url)
    # What the old server compiled is not compiled again.
    with lazyfx.connect(address) as client:
        assert client.compile(graph_of(1.0), [DCE]).cache.status == "hit"
    assert total(samples, "lazyfx_requests_total", method="Compile", code="INTERNAL") == 0
    assert not [line for line in (*old.log, *new.log) if "Traceback" in line]


@pytest.mark.long
def test_replicas_that_are_restarted_in_turn_cost_no_request(
    replica: Start, tmp_path: Path
) -> None:
    """The second one is stopped as soon as the first serves again; both have their old addresses."""
    ports = [_free_port(), _free_port()]
    flags = [
        ("--listen", f"127.0.0.1:{port}", "--store-path", str(tmp_path / str(port)))
        for port in ports
    ]
    old = [replica(*each) for each in flags]
    new = []
    with Load(",".join(server.address for server in old)) as load:
        wait_until(lambda: all(_answered(server) >= 10 for server in old), "load on both")
        for server, each in zip(old, flags, strict=True):
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(PATIENCE) == 0
            new.append(replica(*each))
        wait_until(lambda: all(_answered(server) >= 10 for server in new), "load on both")
    assert set(load.outcomes) <= {"hit", "miss", "joined"}, load.outcomes
    for server in new:
        failed = total(
            metrics(server.metrics_url), "lazyfx_requests_total", method="Compile", code="INTERNAL"
        )
        assert failed == 0
    assert not [line for server in (*old, *new) for line in server.log if "Traceback" in line]


def _answered(server: RunningServer) -> float:
    return total(metrics(server.metrics_url), "lazyfx_requests_total", method="Compile", code="OK")

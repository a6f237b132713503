"""Clients of a server whose workers are killed, one after the other, while they work."""

from __future__ import annotations

import operator
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import torch
from harness import PATIENCE, metrics, total, wait_until, worker_pids
from torch.fx import Graph, GraphModule

import lazyfx

if TYPE_CHECKING:
    from servers import RunningServer

_CLIENTS = 4
_WORKERS = 3


def _chain(number: int) -> GraphModule:
    """A graph that no other number gives, which takes a worker some time; made by hand, since
    torch traces in one thread at a time."""
    graph = Graph()
    value = graph.placeholder("x")
    for _ in range(300):
        value = graph.call_function(operator.mul, (value, 1))
        value = graph.call_function(operator.neg, (value,))
    graph.output(graph.call_function(operator.add, (value, number)))
    return GraphModule(torch.nn.Module(), graph)


@dataclass
class _Load:
    """Clients that ask for one graph after the other until they are stopped."""

    address: str
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _numbers: int = 0
    _waiting: set[int] = field(default_factory=set)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def waiting(self) -> frozenset[int]:
        """The graphs that are asked for now."""
        with self._lock:
            return frozenset(self._waiting)

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        """One client's work."""
        with lazyfx.connect(self.address) as client:
            while not self._stopped.is_set():
                with self._lock:
                    self._numbers += 1
                    number = self._numbers
                    self._waiting.add(number)
                failure = self._ask(client, number)
                with self._lock:
                    self._waiting.remove(number)
                    self.answered += 1
                    self.failures += [failure] if failure else []

    @staticmethod
    def _ask(client: lazyfx.Client, number: int) -> str:
        """Compiles, fetches code and calls; what went wrong, or nothing."""
        x = torch.arange(4.0)
        try:
            module = client.compile(
                _chain(number), passes=["no_op_elimination", "dead_code_elimination"]
            )
            code, found = module.code, module(x)
        except Exception as error:  # noqa: BLE001 - each failure is reported
            return f"{number}: {error!r}"
        right = torch.equal(found, x + number) and f"+ {number}" in code
        return "" if right else f"{number}: wrong answer {found} by {code}"


def _kill_workers(server: RunningServer, count: int, waiting: Callable[[], frozenset[int]]) -> None:
    """Kills workers at random moments, none while a graph that saw a kill is still waited for."""
    dice = random.Random(34)
    for _ in range(count):
        time.sleep(dice.uniform(0.0, 0.3))
        os.kill(dice.choice(worker_pids(server.pid)), signal.SIGKILL)
        hit = waiting()
        wait_until(lambda: not hit & waiting(), "answers to what was asked for")  # noqa: B023
        wait_until(lambda: len(worker_pids(server.pid)) == _WORKERS, "another worker")


def _clients_see_nothing_of(kills: int, server: RunningServer) -> None:
    wait_until(lambda: len(worker_pids(server.pid)) == _WORKERS, "workers")
    load = _Load(server.address)
    threads = [threading.Thread(target=load.run) for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: load.answered >= _CLIENTS, "first answers")
        _kill_workers(server, kills, load.waiting)
    finally:
        load.stop()
        for thread in threads:
            thread.join(PATIENCE)
    assert load.failures == []
    assert load.answered > kills
    samples = metrics(server.metrics_url)
    assert total(samples, "lazyfx_worker_restarts_total", reason="crash") == kills
    assert not [line for line in server.log if "Traceback" in line]
    died = [line for line in server.log if "a worker died on a" in line]
    assert len(died) >= kills // 10, "hardly a kill hit a job"


def test_clients_see_nothing_of_killed_workers(launch: Callable[..., RunningServer]) -> None:
    _clients_see_nothing_of(4, launch("--workers", str(_WORKERS)))


@pytest.mark.slow
def test_clients_see_nothing_of_34_killed_workers(launch: Callable[..., RunningServer]) -> None:
    _clients_see_nothing_of(34, launch("--workers", str(_WORKERS)))

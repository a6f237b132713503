"""Servers on one Redis, and calls of them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import redis
import store_servers
from harness import CSE, DCE, PATIENCE, compile_request, connected, graph_of, metrics, total
from servers import RunningServer

from lazyfx.v1 import compiler_pb2 as pb

HIT, MISS, JOINED = pb.CACHE_STATUS_HIT, pb.CACHE_STATUS_MISS, pb.CACHE_STATUS_JOINED
Start = Callable[..., RunningServer]


@dataclass
class Fleet:
    """Servers on one Redis."""

    servers: Sequence[RunningServer]
    store: store_servers.Server

    def sum(self, name: str, **labels: str) -> float:
        return sum(total(metrics(each.metrics_url), name, **labels) for each in self.servers)

    @property
    def compiles(self) -> float:
        return self.sum("lazyfx_compile_seconds_count")

    def flights(self, outcome: str, stage: str = "compile") -> float:
        return self.sum("lazyfx_fleet_flights_total", stage=stage, outcome=outcome)

    @property
    def leases(self) -> int:
        """Leases that are held at present."""
        return len(redis.Redis(port=self.store.port).keys("lazyfx:1:lease:*"))


def all_at_once(
    servers: Sequence[RunningServer], clients: int, call: Callable[[Any], object]
) -> list[Any]:
    """What as many clients get, each on a connection of its own, spread over the servers."""
    start = threading.Barrier(clients)

    def one(number: int) -> object:
        with connected(servers[number % len(servers)].address) as stub:
            start.wait()
            return call(stub)

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, range(clients)))


def compile_of(number: float) -> Callable[[Any], pb.CompileResponse]:
    request = compile_request(graph_of(number), CSE, DCE)
    return lambda stub: stub.Compile(request, timeout=PATIENCE)


@contextlib.contextmanager
def calling(server: RunningServer, number: float) -> Iterator[grpc.Future]:
    """A compile that is under way."""
    with connected(server.address) as stub:
        yield stub.Compile.future(compile_request(graph_of(number), CSE, DCE), timeout=PATIENCE)


def resume(workers: Sequence[int]) -> None:
    for pid in workers:
        os.kill(pid, signal.SIGCONT)


def waits_for_another(server: RunningServer) -> bool:
    """Whether a server has a flight; its own workers are idle, so it waits."""
    return total(metrics(server.metrics_url), "lazyfx_in_flight") > 0

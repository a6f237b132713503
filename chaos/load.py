"""Clients that ask for compiles, and check every answer against what they compute themselves."""

from __future__ import annotations

import collections
import math
import operator
import random
import threading
import time
from collections.abc import Sequence
from typing import Final

import torch
from torch.fx import Graph, GraphModule

import lazyfx
from lazyfx.errors import LazyfxError, ServiceError

_PASSES: Final = ("dead_code_elimination", "common_subexpression_elimination")
_TIMEOUT: Final = 20.0
# A call may be retried, and an answer fetched: a job that takes longer hangs.
_LONGEST: Final = 4 * _TIMEOUT
_UNCLEAR: Final = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS"})
_NEW: Final = 0.4
_TOGETHER: Final = 3
"""So many jobs in a row ask for the same graph: different clients, and often different replicas."""


class Books:
    """What became of each job; exactly one line for each.

    Attributes:
        asked: Jobs begun.
        outcomes: Jobs ended, by outcome: "hit", "miss", "joined", or the status of a refusal.
        wrong: Answers that were wrong, unclear or late, in words.
        keys: The key of each graph's module, as the first answer told it.
        misses: Answers that were compiled for the job, by server and graph.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.asked = 0
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.keys: dict[int, str] = {}
        self.misses: collections.Counter[tuple[str, int]] = collections.Counter()
        self.slowest = 0.0

    def begin(self, jobs: int) -> int:
        """The number of a new job; 0 if so many have begun."""
        with self._lock:
            if self.asked >= jobs:
                return 0
            self.asked += 1
            return self.asked

    def missed(self, address: str, graph: int) -> None:
        """Record that a server has compiled a graph."""
        with self._lock:
            self.misses[address, graph] += 1

    def end(self, outcome: str, seconds: float, wrong: str = "") -> None:
        """Record what became of a job."""
        with self._lock:
            self.outcomes[outcome] += 1
            self.slowest = max(self.slowest, seconds)
            if wrong:
                self.wrong.append(wrong)

    def is_same_key(self, graph: int, key: str) -> bool:
        """Whether all answers about a graph have the same key."""
        with self._lock:
            return self.keys.setdefault(graph, key) == key

    @property
    def answered(self) -> int:
        """Jobs with an answer."""
        return sum(self.outcomes[kind] for kind in ("hit", "miss", "joined"))


class Load:
    """Several clients, each in its own thread, until they are stopped or have done enough.

    Args:
        addresses: The servers; each job goes to one of them.
        clients: How many clients.
        seed: Of the choice of graphs and servers.
        books: Where outcomes are recorded.
        jobs: How many jobs at most.
        seconds: No job begins later than so long after the start.
        new_from: The number of the first graph that is not asked for again and again.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        clients: int,
        seed: int,
        books: Books,
        *,
        jobs: int,
        seconds: float,
        new_from: int = 1000,
    ) -> None:
        self._addresses = addresses
        self._seed = seed
        self._books = books
        self._jobs = jobs
        self._seconds = seconds
        self._new_from = new_from
        self._end = math.inf
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed}/{i}"),))
            for i in range(clients)
        ]

    def start(self) -> None:
        """Start the clients."""
        self._end = time.monotonic() + self._seconds
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait until every client has ended its job."""
        self._stopped.set()
        self.wait()

    def wait(self) -> None:
        """Wait until all jobs have been done."""
        for thread in self._threads:
            thread.join(_LONGEST * 2)
            if thread.is_alive():
                self._books.wrong.append("a client hangs")

    def _run(self, dice: random.Random) -> None:
        clients = [lazyfx.connect(address, timeout=_TIMEOUT) for address in self._addresses]
        try:
            while not self._stopped.is_set() and time.monotonic() < self._end:
                number = self._books.begin(self._jobs)
                if not number:
                    return
                which = dice.randrange(len(clients))
                fetches = dice.random() < 0.3
                self._one(clients[which], self._addresses[which], self._graph(number), fetches)
        finally:
            for client in clients:
                client.close()

    def _graph(self, number: int) -> int:
        """The graph of a job: the same for a few jobs in a row."""
        group = number // _TOGETHER
        dice = random.Random(f"{self._seed}/graph/{group}")
        return self._new_from + group if dice.random() < _NEW else dice.randrange(1, 40)

    def _one(self, client: lazyfx.Client, address: str, graph: int, fetches: bool) -> None:
        started = time.monotonic()
        outcome, wrong = "", ""
        try:
            handle = client.compile(graph_of(graph), _PASSES)
            outcome = handle.cache.status
            if outcome == "miss":
                self._books.missed(address, graph)
            if not self._books.is_same_key(graph, handle.key):
                wrong = f"graph {graph} has two keys"
            if fetches:
                x = torch.arange(4.0)
                if not torch.equal(handle(x), expected(graph, x)):
                    wrong = f"graph {graph} computes something else"
        except ServiceError as error:
            outcome = str(error.code)
            if outcome in _UNCLEAR or not str(error):
                wrong = f"graph {graph}: unclear refusal {outcome}: {error}"
        except LazyfxError as error:
            outcome = type(error).__name__
            wrong = f"graph {graph}: {outcome}: {error}"
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must not raise it
            outcome = type(error).__name__
            wrong = f"graph {graph}: the client raised {error!r}"
        seconds = time.monotonic() - started
        if seconds > _LONGEST and not wrong:
            wrong = f"graph {graph}: {outcome} after {seconds:.0f} s"
        self._books.end(outcome, seconds, wrong)
        if outcome in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}:
            time.sleep(0.05)


def graph_of(number: int) -> GraphModule:
    """A graph that no other number gives, with dead and doubled nodes.

    It is made by hand, because torch traces in one thread at a time.
    """
    graph = Graph()
    x = graph.placeholder("x")
    value = x
    for _ in range(number % 7 + 1):
        once = graph.call_function(operator.mul, (value, 2))
        again = graph.call_function(operator.mul, (value, 2))
        graph.call_function(operator.neg, (again,))
        value = graph.call_function(operator.add, (once, again))
    graph.output(graph.call_function(operator.add, (value, number)))
    return GraphModule(torch.nn.Module(), graph)


def expected(number: int, x: torch.Tensor) -> torch.Tensor:
    """What that graph computes."""
    return x * 4.0 ** (number % 7 + 1) + number

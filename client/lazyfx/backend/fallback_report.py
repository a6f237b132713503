"""Records what the backend did in this process: graphs, fallbacks, one warning per cause."""

from __future__ import annotations

import os
import threading
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Outcome = Literal["remote", "local", "eager", "failed"]


class FallbackWarning(UserWarning):
    """The server could not help; the job continues without it."""


@dataclass(frozen=True, slots=True)
class KernelCounts:
    """The C++ kernels of an artifact that the server built while this process waited.

    Attributes:
        known: Those that it had compiled before, or compiled for another artifact meanwhile.
        compiled: Those that it compiled for this one.
    """

    known: int
    compiled: int

    def __str__(self) -> str:
        total = self.known + self.compiled
        kernels = f"{total} kernel{'' if total == 1 else 's'}"
        return f"{kernels}: {self.known} known, {self.compiled} compiled"


@dataclass(frozen=True, slots=True)
class EqualBlocks:
    """Equal blocks of a graph, such as its layers, that were compiled once.

    Attributes:
        calls: How many there are.
        nodes: Nodes of each.
    """

    calls: int
    nodes: int

    def __str__(self) -> str:
        return f"{self.calls} equal blocks of {self.nodes} nodes compiled once"


@dataclass(frozen=True)
class GraphReport:
    """One graph that torch.compile passed to the backend.

    Attributes:
        number: Counted from 1 in this process.
        nodes: Nodes of the graph.
        digest: Hex digest of the graph; empty if it could not be encoded.
        outcome: What runs now: the server's result ("remote"), code compiled in this process
            ("local"), the uncompiled graph ("eager"), or nothing, because the server could not help
            and the local compile failed too ("failed").
        cache: "hit", "miss" or "joined"; empty without an answer.
        seconds: Time until there was something to run.
        reason: Why it is not remote; empty if it is.
        divergence: With agreement="all": the first node in which the ranks' graphs differ.
        kernels: What the server compiled; None if it had the artifact, or built none.
        equal_blocks: With equal_blocks="once": what was compiled once and is called several times.
        compiled: The server compiled it while this process waited.
        recorded: With the option `record`: the name of the file that it was recorded in.
        prefetched: The server sent it before it was asked for, as this job had asked for it before.
    """

    number: int
    nodes: int
    digest: str
    outcome: Outcome
    cache: str
    seconds: float
    reason: str
    divergence: str = ""
    kernels: KernelCounts | None = None
    equal_blocks: tuple[EqualBlocks, ...] = ()
    compiled: bool = False
    recorded: str = ""
    prefetched: bool = False


@dataclass(frozen=True)
class BackendReport:
    """What `torch.compile(backend="lazyfx")` did in this process.

    Attributes:
        graphs: One report per graph, in the order in which they were compiled.
        fallbacks: How often the server could not help, by the kind of error.
    """

    graphs: tuple[GraphReport, ...]
    fallbacks: Mapping[str, int] = field(default_factory=dict)

    @property
    def remote(self) -> int:
        """The number of graphs that run the server's result."""
        return sum(graph.outcome == "remote" for graph in self.graphs)

    def __str__(self) -> str:
        count = len(self.graphs)
        lines = [f"{count} graph{'' if count == 1 else 's'}, {self.remote} remote"]
        if not self.graphs:
            lines.append(f"  {_NOTHING_CAPTURED}")
        for graph in self.graphs:
            line = f"  {graph.number}: {graph.nodes} nodes, {graph.outcome}"
            words = [word for word in (graph.cache, "prefetched" * graph.prefetched) if word]
            line += f" ({', '.join(words)})" if words else ""
            line += f", {graph.seconds:.2f} s"
            line += f", {graph.kernels}" if graph.kernels is not None else ""
            line += "".join(f", {blocks}" for blocks in graph.equal_blocks)
            line += f": {graph.reason}" if graph.reason else ""
            lines.append(line + (f"; {graph.divergence}" if graph.divergence else ""))
        return "\n".join(lines)


_NOTHING_CAPTURED = (
    "torch.compile has passed no graph to the backend; TORCH_LOGS=graph_breaks shows why. "
    "Compile an nn.Sequential before DistributedDataParallel wraps it"
)


class _Records:
    """The records of this process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._graphs: list[GraphReport] = []
        self._fallbacks: Counter[str] = Counter()
        self._warned: set[str] = set()
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        """In a forked process the lock may be held by a thread that no longer exists."""
        self._lock = threading.Lock()

    def add(
        self,
        *,
        nodes: int,
        digest: str,
        outcome: Outcome,
        cache: str,
        seconds: float,
        reason: str,
        divergence: str = "",
        kernels: KernelCounts | None = None,
        equal_blocks: tuple[EqualBlocks, ...] = (),
        compiled: bool = False,
        recorded: str = "",
        prefetched: bool = False,
    ) -> None:
        with self._lock:
            self._graphs.append(
                GraphReport(
                    number=len(self._graphs) + 1,
                    nodes=nodes,
                    digest=digest,
                    outcome=outcome,
                    cache=cache,
                    seconds=seconds,
                    reason=reason,
                    divergence=divergence,
                    kernels=kernels,
                    equal_blocks=equal_blocks,
                    compiled=compiled,
                    recorded=recorded,
                    prefetched=prefetched,
                )
            )

    def record_fallback(self, kind: str, message: str) -> None:
        with self._lock:
            self._fallbacks[kind] += 1
            first = kind not in self._warned
            self._warned.add(kind)
        if first:
            # The stack below is dynamo's, so no line of it would help.
            warnings.warn(message, FallbackWarning, stacklevel=2)

    def undo_fallback(self, kind: str) -> None:
        """Undo the count of a fallback: the graph will come again."""
        with self._lock:
            self._fallbacks[kind] -= 1
            if not self._fallbacks[kind]:
                del self._fallbacks[kind]

    def report(self) -> BackendReport:
        with self._lock:
            return BackendReport(tuple(self._graphs), dict(self._fallbacks))

    def clear(self) -> None:
        with self._lock:
            self._graphs.clear()
            self._fallbacks.clear()
            self._warned.clear()


# A backend is a function that dynamo calls, so its records can only be per process.
records: Final = _Records()


def backend_report() -> BackendReport:
    """What `torch.compile(backend="lazyfx")` has done in this process so far."""
    return records.report()


def reset_backend_report() -> None:
    """Reset the counts; warnings for known causes are issued again."""
    records.clear()

"""The ledger of one job: recompiles asked for, done and saved, and why they were done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Trigger = Literal["code", "pickle", "package", "picture", "call"]

PIPELINE_SCOPE = "pipeline"

# Fitted over BERT, GPT-2, Llama, T5 and ResNet-50 in seven captures each: a full
# recompile costs 29 us a node, half of it for the text, half for compiling it.
SECONDS_PER_NODE = 29e-6
_TEXT_SHARE = 0.5

# Below this many nodes a measurement says more about the clock than about the graph.
_MEASURABLE_NODES = 64


@dataclass(frozen=True, slots=True)
class PerformedRecompile:
    """One recompile that really happened.

    Attributes:
        scope: The pass during which it happened, or "pipeline".
        trigger: What needed the code.
        seconds: How long it took.
        nodes: Nodes of the graph.
        executed: The text was compiled too, not only generated.
    """

    scope: str
    trigger: Trigger
    seconds: float
    nodes: int
    executed: bool


@dataclass(frozen=True, slots=True)
class ScopeCount:
    """Recompiles of one scope: asked for and really done."""

    requested: int
    performed: int

    @property
    def saved(self) -> int:
        """Asked for and never done."""
        return max(0, self.requested - self.performed)


def estimate_seconds(nodes: int) -> float:
    """Estimates what one recompile of a graph of `nodes` nodes costs, in seconds."""
    return nodes * SECONDS_PER_NODE


class RecompileLedger:
    """Counts the recompiles of one job. Lives as long as the job, shared with nobody.

    Attributes:
        scope: What is running now: a pass's name, or "pipeline" between passes.
        events: The recompiles that really happened, in order.
    """

    def __init__(self) -> None:
        self.scope = PIPELINE_SCOPE
        self.events: list[PerformedRecompile] = []
        self._requested: defaultdict[str, int] = defaultdict(int)
        self._requested_nodes = 0
        self._trigger: Trigger | None = None

    def note_requested(self, nodes: int) -> None:
        """Counts one recompile asked for, of a graph of `nodes` nodes."""
        self._requested[self.scope] += 1
        self._requested_nodes += nodes

    def note_performed(self, seconds: float, nodes: int, *, executed: bool) -> None:
        """Counts one recompile done; its trigger is that of the enclosing `because`."""
        trigger = self._trigger or "call"
        self.events.append(PerformedRecompile(self.scope, trigger, seconds, nodes, executed))

    def requested(self, scope: str | None = None) -> int:
        """How many recompiles were asked for, in one scope or in all."""
        return sum(self._requested.values()) if scope is None else self._requested.get(scope, 0)

    def performed(self, scope: str | None = None) -> int:
        """How many recompiles happened, in one scope or in all."""
        return sum(1 for event in self.events if scope is None or event.scope == scope)

    def by_scope(self) -> dict[str, ScopeCount]:
        """The counts of each scope that asked for or did a recompile."""
        scopes = dict.fromkeys([*self._requested, *(event.scope for event in self.events)])
        return {name: ScopeCount(self.requested(name), self.performed(name)) for name in scopes}

    def estimate_seconds(self, nodes: int) -> float:
        """Estimates what a recompile of `nodes` nodes costs on this machine, in seconds.

        Uses the recompiles that this job really did, else the fitted cost of a node.
        """
        measured = sum(event.nodes for event in self.events)
        if measured < _MEASURABLE_NODES:
            return estimate_seconds(nodes)
        seconds = sum(e.seconds if e.executed else e.seconds / _TEXT_SHARE for e in self.events)
        return nodes * seconds / measured

    def saved_seconds(self) -> float:
        """Estimated seconds of code generation that were asked for and never done."""
        saved_nodes = self._requested_nodes - sum(event.nodes for event in self.events)
        return self.estimate_seconds(max(0, saved_nodes))

    @contextmanager
    def running(self, scope: str) -> Iterator[None]:
        """Counts under `scope` inside the block."""
        outer, self.scope = self.scope, scope
        try:
            yield
        finally:
            self.scope = outer

    @contextmanager
    def because(self, trigger: Trigger) -> Iterator[None]:
        """Gives recompiles inside the block their trigger; the outermost block decides."""
        outer = self._trigger
        self._trigger = outer or trigger
        try:
            yield
        finally:
            self._trigger = outer

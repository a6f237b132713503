"""The ledger of one job: recompiles requested, performed and saved, and what triggered them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakKeyDictionary

from torch.fx import GraphModule

from lazyfx_server.lazy.recompile_costs import FITTED, RecompileCost

Trigger = Literal["code", "pickle", "package", "call", "torchscript", "exported_program", "eager"]

PIPELINE_SCOPE = "pipeline"


@dataclass(frozen=True, slots=True)
class PerformedRecompile:
    """One recompile that was performed.

    Attributes:
        scope: The pass during which it happened, or "pipeline".
        trigger: What needed the code.
        seconds: How long it took.
        nodes: Nodes of the graph.
        executed: The source was also compiled, not only generated.
        where: The line that needed the code, "file.py:12 in function"; may be empty.
    """

    scope: str
    trigger: Trigger
    seconds: float
    nodes: int
    executed: bool
    where: str = ""


@dataclass(frozen=True, slots=True)
class ScopeCount:
    """Recompiles of one scope: requested and performed.

    Attributes:
        requested: Requested recompiles.
        performed: Performed recompiles.
        saved_seconds: Estimated cost of those requested but never performed.
    """

    requested: int
    performed: int
    saved_seconds: float = 0.0

    @property
    def saved(self) -> int:
        """Requested but never performed."""
        return max(0, self.requested - self.performed)


@dataclass(slots=True)
class _Count:
    requested: int = 0
    requested_nodes: int = 0
    performed: int = 0
    performed_nodes: int = 0


@dataclass(slots=True)
class _Totals:
    all: _Count = field(default_factory=_Count)
    scopes: defaultdict[str, _Count] = field(default_factory=lambda: defaultdict(_Count))
    # By identity, with weak references: a pattern's module is dropped with the pattern.
    modules: MutableMapping[GraphModule, _Count] = field(default_factory=WeakKeyDictionary)

    def of(self, scope: str, module: GraphModule) -> tuple[_Count, _Count, _Count]:
        return self.all, self.scopes[scope], self.modules.setdefault(module, _Count())


class RecompileLedger:
    """Counts the recompiles of one job. Lives as long as the job and is not shared.

    Args:
        cost: The cost of a recompile, for the estimate of savings.

    Attributes:
        scope: What is running now: a pass's name, or "pipeline" between passes.
        events: The performed recompiles, in order.
    """

    def __init__(self, cost: RecompileCost = FITTED) -> None:
        self.scope = PIPELINE_SCOPE
        self.events: list[PerformedRecompile] = []
        self._cost = cost
        self._totals = _Totals()
        self._trigger: Trigger | None = None

    def record_requested(self, module: GraphModule) -> None:
        """Counts one requested recompile."""
        nodes = len(module.graph.nodes)
        for count in self._totals.of(self.scope, module):
            count.requested += 1
            count.requested_nodes += nodes

    def record_performed(
        self, module: GraphModule, seconds: float, *, executed: bool, where: str = ""
    ) -> None:
        """Counts one performed recompile; its trigger is that of the enclosing `triggered_by`."""
        trigger = self._trigger or "call"
        nodes = len(module.graph.nodes)
        self.events.append(PerformedRecompile(self.scope, trigger, seconds, nodes, executed, where))
        for count in self._totals.of(self.scope, module):
            count.performed += 1
            count.performed_nodes += nodes

    def requested(self, scope: str | None = None) -> int:
        """How many recompiles were requested, in one scope or in all."""
        return self._count(scope).requested

    def performed(self, scope: str | None = None) -> int:
        """How many recompiles were performed, in one scope or in all."""
        return self._count(scope).performed

    def of_module(self, module: GraphModule) -> ScopeCount:
        """The counts of one module, nested modules not included."""
        return self._public(self._totals.modules.get(module) or _Count())

    @property
    def cost(self) -> RecompileCost:
        """The cost of a recompile: measured in this job, else as given to the ledger."""
        return self._cost.refined([(e.seconds, e.nodes, e.executed) for e in self.events])

    def saved_seconds(self, scope: str | None = None) -> float:
        """Estimated seconds of code generation that was requested but never performed."""
        return self._public(self._count(scope)).saved_seconds

    def performed_seconds(self) -> float:
        """Measured seconds of the performed recompiles."""
        return sum(event.seconds for event in self.events)

    @contextmanager
    def in_scope(self, scope: str) -> Iterator[None]:
        """Record under `scope` inside the block."""
        outer, self.scope = self.scope, scope
        try:
            yield
        finally:
            self.scope = outer

    @contextmanager
    def triggered_by(self, trigger: Trigger) -> Iterator[None]:
        """Sets the trigger of recompiles inside the block; the outermost block wins."""
        outer = self._trigger
        self._trigger = outer or trigger
        try:
            yield
        finally:
            self._trigger = outer

    def _count(self, scope: str | None) -> _Count:
        return self._totals.all if scope is None else self._totals.scopes.get(scope, _Count())

    def _public(self, count: _Count) -> ScopeCount:
        nodes = max(0, count.requested_nodes - count.performed_nodes)
        return ScopeCount(count.requested, count.performed, self.cost.seconds(nodes))

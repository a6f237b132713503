"""A pipeline: passes in order, and its fingerprint for cache keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch.fx import GraphModule

from lazyfx.shared.pass_spelling import UNTIL_STABLE, Group, NamedOptions, Spelled, spell
from lazyfx_server.lazy import RecompileLedger, lazy_job
from lazyfx_server.passes.base import Pass, Rewrites
from lazyfx_server.passes.driver import Driver, PassRun, PlacedPass
from lazyfx_server.passes.option_spelling import changed_options
from lazyfx_server.settings.limits import PassLimits

# Default rounds of until_stable.
DEFAULT_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class UntilStable:
    """Passes that are repeated until none of them changes the graph.

    Attributes:
        passes: In the order in which they run.
        at_most: The maximum number of rounds.
    """

    passes: tuple[Pass, ...]
    at_most: int = DEFAULT_ROUNDS


Step: TypeAlias = "Pass | UntilStable"


@dataclass(frozen=True, slots=True)
class PipelineOutcome:
    """The (lazy) module after all passes, and the totals of each pass."""

    module: GraphModule
    runs: tuple[PassRun, ...]


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run.

    Attributes:
        steps: Passes, and groups of passes that run until the graph is stable.
        rewrite_digests: For each pass by index, the digests of its rewrites, which are part of the
            fingerprint.
    """

    steps: tuple[Step, ...]
    rewrite_digests: Mapping[int, tuple[tuple[bytes, ...], ...]] = field(default_factory=dict)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Every pass once, including those in groups, in index order."""
        return tuple(placed.pass_ for placed in self._placed())

    @property
    def spelling(self) -> str:
        """The canonical spelling; `pass_spelling.parse` reads it back (without rewrites)."""
        return spell(_spelled(step) for step in self.steps)

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that change whenever the pipeline's results may change."""
        rows = [
            [
                pass_.name,
                pass_.version,
                pass_.fingerprint(),
                pass_.source_digest,
                spell([_named(pass_)]),
                [[part.hex() for part in digests] for digests in self.rewrite_digests.get(i, ())],
            ]
            for i, pass_ in enumerate(self.passes)
        ]
        groups = [step.at_most if isinstance(step, UntilStable) else 0 for step in self.steps]
        sizes = [len(step.passes) if isinstance(step, UntilStable) else 1 for step in self.steps]
        shape = [groups, sizes] if any(groups) else []
        return hashlib.sha256(json.dumps([rows, shape], separators=(",", ":")).encode()).digest()

    def values_read(self, module: GraphModule) -> frozenset[str]:
        """Paths of the tensor attributes whose values any pass would read.

        Args:
            module: The module before the first pass, its tensors on the meta device.
        """
        wanting = [p for p in self.passes if p.needs_values]
        return frozenset[str]().union(*(p.values_read(module) for p in wanting))

    def run(
        self,
        module: GraphModule,
        ledger: RecompileLedger,
        limits: PassLimits | None = None,
        rewrites: Mapping[int, Rewrites] | None = None,
    ) -> PipelineOutcome:
        """Runs the passes in a new lazy job.

        Args:
            module: Made lazy, then changed in place.
            ledger: Counts every recompile, under the name of the pass that requested it.
            limits: Bounds of each pass.
            rewrites: For each pass by index, its rewrites.

        Raises:
            PassError: A pass failed; names it, its position and the passes before it.
        """
        with lazy_job(ledger):
            return self.run_in_job(module, Driver(ledger, limits or PassLimits()), rewrites)

    def run_in_job(
        self,
        module: GraphModule,
        driver: Driver,
        rewrites: Mapping[int, Rewrites] | None = None,
    ) -> PipelineOutcome:
        """Like `run`, for a caller that is already inside `lazy_job`."""
        module = driver.adopt(module)
        placed = iter(list(self._placed()))
        for step in self.steps:
            if isinstance(step, UntilStable):
                group = [next(placed) for _ in step.passes]
                module = _repeat(driver, group, module, step.at_most, rewrites or {})
            else:
                module, _ = driver.run_one(next(placed), module, rewrites or {})
        return PipelineOutcome(module, driver.runs)

    def _placed(self) -> Iterator[PlacedPass]:
        number = 0
        for i, step in enumerate(self.steps):
            inner = step.passes if isinstance(step, UntilStable) else (step,)
            for j, pass_ in enumerate(inner):
                where = f"passes[{i}]"
                if isinstance(step, UntilStable):
                    where += f".passes[{j}]"
                yield PlacedPass(pass_, number, where)
                number += 1


def _repeat(
    driver: Driver,
    group: list[PlacedPass],
    module: GraphModule,
    at_most: int,
    rewrites: Mapping[int, Rewrites],
) -> GraphModule:
    for _ in range(at_most):
        changed = False
        for placed in group:
            module, changed_here = driver.run_one(placed, module, rewrites)
            changed |= changed_here
        if not changed:
            return module
    driver.add_note(group[-1], f"not stable after {at_most} rounds")
    return module


def _named(pass_: Pass) -> NamedOptions:
    return pass_.name, changed_options(pass_)


def _spelled(step: Step) -> Spelled:
    if not isinstance(step, UntilStable):
        return _named(step)
    options = {} if step.at_most == DEFAULT_ROUNDS else {"at_most": step.at_most}
    return Group(UNTIL_STABLE, options, tuple(_named(pass_) for pass_ in step.passes))

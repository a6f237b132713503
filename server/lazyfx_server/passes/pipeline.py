"""A pipeline: passes in order, and its name in a cache key."""

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

# Rounds of until_stable when the request does not say.
DEFAULT_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class UntilStable:
    """Passes that run in turn until none of them changes the graph.

    Attributes:
        passes: In the order in which they run.
        at_most: Rounds after which it ends, stable or not.
    """

    passes: tuple[Pass, ...]
    at_most: int = DEFAULT_ROUNDS


Step: TypeAlias = "Pass | UntilStable"


@dataclass(frozen=True, slots=True)
class PipelineOutcome:
    """The module after all passes (lazy), and what each did."""

    module: GraphModule
    runs: tuple[PassRun, ...]


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run.

    Attributes:
        steps: Passes, and groups of passes that run until the graph is stable.
        rewrite_digests: For each pass by its number, the digests of its rewrites, which are
            part of the fingerprint.
    """

    steps: tuple[Step, ...]
    rewrite_digests: Mapping[int, tuple[tuple[bytes, ...], ...]] = field(default_factory=dict)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Every pass once, those inside groups too; a pass's number is its index here."""
        return tuple(placed.pass_ for placed in self._placed())

    @property
    def spelling(self) -> str:
        """The canonical spelling; `pass_spelling.parse` reads it back (without rewrites)."""
        return spell(_spelled(step) for step in self.steps)

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that change whenever the pipeline's results may."""
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
        """Paths of the tensor attributes whose values some pass would read.

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
        """Runs the passes, inside a lazy job of their own.

        Args:
            module: Changed in place; made lazy first.
            ledger: Counts every recompile, under the name of the pass that asked.
            limits: Bounds of each pass.
            rewrites: For each pass by its number, what it replaces.

        Raises:
            PassError: A pass failed; names it, its place and those before it.
        """
        with lazy_job(ledger):
            return self.run_in_job(module, Driver(ledger, limits or PassLimits()), rewrites)

    def run_in_job(
        self,
        module: GraphModule,
        driver: Driver,
        rewrites: Mapping[int, Rewrites] | None = None,
    ) -> PipelineOutcome:
        """As `run`, for a caller that is inside `lazy_job` already."""
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

"""A pipeline: passes in order, its name in a cache key, and the driver that runs it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from torch.fx import GraphModule, Node

from lazyfx_server.lazy import RecompileLedger, lazy_job, make_lazy
from lazyfx_server.passes.base import Pass, PassContext, PassLimits, PassResult, Rewrites
from lazyfx_server.passes.errors import PassError
from lazyfx_server.passes.options import spell_pipeline


@dataclass(frozen=True, slots=True)
class PassRun:
    """What one pass of a pipeline did: the row of a report."""

    name: str
    spelling: str
    seconds: float
    nodes_before: int
    nodes_after: int
    changed: bool
    requested: int
    performed: int
    note: str

    @property
    def saved(self) -> int:
        """Recompiles that were asked for and never done."""
        return max(0, self.requested - self.performed)


@dataclass(frozen=True, slots=True)
class PipelineOutcome:
    """The module after all passes (lazy), and what each did."""

    module: GraphModule
    runs: tuple[PassRun, ...]


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run.

    Attributes:
        passes: The passes with their options.
        rewrite_digests: For each pass by its place, the digests of its rewrites'
            graphs, which are part of the fingerprint.
    """

    passes: tuple[Pass, ...]
    rewrite_digests: Mapping[int, tuple[tuple[bytes, bytes], ...]] = field(default_factory=dict)

    @property
    def spelling(self) -> str:
        """The canonical spelling; `lazyfx.spelling.parse` reads it back (without rewrites)."""
        return spell_pipeline(self.passes)

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that change whenever the pipeline's results may."""
        rows = [
            [
                pass_.name,
                pass_.version,
                spell_pipeline([pass_]),
                [
                    [pattern.hex(), replacement.hex()]
                    for pattern, replacement in self.rewrite_digests.get(place, ())
                ],
            ]
            for place, pass_ in enumerate(self.passes)
        ]
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).digest()

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
            rewrites: For each pass by its place, its (pattern, replacement) pairs.

        Raises:
            PassError: A pass failed; names it, its place and those before it.
        """
        with lazy_job(ledger):
            return self.run_in_job(module, ledger, limits, rewrites)

    def run_in_job(
        self,
        module: GraphModule,
        ledger: RecompileLedger,
        limits: PassLimits | None = None,
        rewrites: Mapping[int, Rewrites] | None = None,
    ) -> PipelineOutcome:
        """As `run`, for a caller that is inside `lazy_job(ledger)` already."""
        module = make_lazy(module, ledger)
        bounds = limits or PassLimits()
        runs: list[PassRun] = []
        for place in range(len(self.passes)):
            context = PassContext((rewrites or {}).get(place, ()), bounds)
            module, run = self._run_one(place, module, ledger, context)
            runs.append(run)
        return PipelineOutcome(module, tuple(runs))

    def _run_one(
        self, place: int, module: GraphModule, ledger: RecompileLedger, context: PassContext
    ) -> tuple[GraphModule, PassRun]:
        pass_ = self.passes[place]
        before = [p.name for p in self.passes[:place]]
        nodes_before = len(module.graph.nodes)
        asked, done = ledger.requested(), ledger.performed()
        start = perf_counter()
        with ledger.running(pass_.name):
            result = _guarded(pass_, module, context, f"passes[{place}]", before)
            result_module = make_lazy(result.module, ledger)
        seconds = perf_counter() - start
        nodes_after = len(result_module.graph.nodes)
        if nodes_after > context.limits.max_nodes:
            raise PassError(
                f"the graph has {nodes_after} nodes after the pass, the limit is "
                f"{context.limits.max_nodes}",
                kind="limit",
                field=f"passes[{place}]",
                pass_name=pass_.name,
                before=before,
            )
        return result_module, PassRun(
            name=pass_.name,
            spelling=spell_pipeline([pass_]),
            seconds=seconds,
            nodes_before=nodes_before,
            nodes_after=nodes_after,
            changed=result.changed,
            requested=ledger.requested() - asked,
            performed=ledger.performed() - done,
            note=result.note,
        )


def _guarded(
    pass_: Pass, module: GraphModule, context: PassContext, where: str, before: Sequence[str]
) -> PassResult:
    try:
        return pass_.run(module, context)
    except PassError as error:
        raise error.at(where, pass_.name, before) from error
    except Exception as error:  # whatever a pass raises becomes an answer to its caller
        raise PassError(
            f"{type(error).__name__}: {error}",
            kind="internal",
            field=where,
            pass_name=pass_.name,
            before=before,
            node=_node_of(error),
        ) from error


def _node_of(error: BaseException) -> str | None:
    """The node that a pass was at when it raised: the innermost local that is one."""
    found: Any = None
    trace = error.__traceback__
    while trace is not None:
        candidate = trace.tb_frame.f_locals.get("node")
        found = candidate if isinstance(candidate, Node) else found
        trace = trace.tb_next
    return found.name if found is not None else None

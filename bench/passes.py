"""(b) The pipeline as the service runs it, compared with performing every recompile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from torch.fx import GraphModule

from bench.graphs import Case
from bench.rounds import Row, take_turns
from lazyfx.shared import wire
from lazyfx.shared.pass_specs import messages, normalize
from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import PassLimits, Pipeline, Registry, Rewrites
from lazyfx_server.passes.base import PassContext
from lazyfx_server.passes.pass_requests import pipeline_of

TARGET = 1 / 3


class LocalPipeline:
    """A case's passes, run in this process on a newly decoded module each time."""

    def __init__(self, case: Case) -> None:
        self._specs = messages(normalize(case.passes))
        self._body = wire.encode(case.module).body
        self._pipeline: Pipeline = pipeline_of(Registry(), self._specs)
        self.ledger = RecompileLedger()

    def rewrites(self) -> dict[int, Rewrites]:
        """The patterns as a worker decodes them."""
        return {
            place: tuple(
                (
                    wire.decode(rewrite.pattern.body, rewrite.pattern.presentation),
                    wire.decode(rewrite.replacement.body, rewrite.replacement.presentation),
                )
                for rewrite in spec.rewrites
            )
            for place, spec in enumerate(self._specs)
            if spec.rewrites
        }

    def lazily(self) -> float:
        """Seconds of the passes as the service runs them."""
        module, rewrites = wire.decode(self._body), self.rewrites()
        self.ledger = RecompileLedger()
        started = perf_counter()
        self._pipeline.run(module, self.ledger, PassLimits(), rewrites)
        return perf_counter() - started

    def recompiling(self) -> float:
        """Seconds of the same passes on a plain GraphModule."""
        module, rewrites = wire.decode(self._body), self.rewrites()
        started = perf_counter()
        for place, each in enumerate(self._pipeline.passes):
            context = PassContext(rewrites.get(place, ()), PassLimits())
            module = each.run(module, context).module
        return perf_counter() - started

    def recompiles_when_plain(self) -> int:
        """How many recompiles the plain run performs."""
        with _counted() as count:
            self.recompiling()
        return count[0]


def measure(case: Case, rounds: int) -> list[Row]:
    """The two ways of running the pipeline, in turns."""
    local = LocalPipeline(case)
    done = local.recompiles_when_plain()
    ours, theirs = take_turns([local.lazily, local.recompiling], rounds)
    asked, performed = local.ledger.requested(), local.ledger.performed()
    section = f"(b) passes, {case.name}"
    return [
        Row(section, f"plain GraphModule, {done} recompiles", theirs),
        Row(section, f"lazy, {asked} asked, {performed} done", ours, against=theirs,
            target=TARGET),
    ]  # fmt: skip


@contextmanager
def _counted() -> Iterator[list[int]]:
    """Counts recompiles of plain modules in the block, except those of decoding."""
    original = GraphModule.recompile
    count = [0]

    def recompile(self: GraphModule) -> object:
        count[0] += self._graph is not None and "_code" in self.__dict__
        return original(self)

    GraphModule.recompile = recompile  # type: ignore[assignment, method-assign]
    try:
        yield count
    finally:
        GraphModule.recompile = original  # type: ignore[method-assign]

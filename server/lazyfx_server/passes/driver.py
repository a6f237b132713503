"""Runs passes one by one: keeps modules lazy, counts recompiles, enforces bounds, places errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Protocol

from torch.fx import GraphModule, Node

from lazyfx.errors import DecodeError
from lazyfx_server.lazy import PerformedRecompile, RecompileLedger, make_lazy
from lazyfx_server.passes.base import Pass, PassContext, PassResult, Rewrites
from lazyfx_server.passes.budget import OutOfTime, time_limit
from lazyfx_server.passes.errors import PassError
from lazyfx_server.passes.option_spelling import spell_pipeline
from lazyfx_server.settings.limits import PassLimits


@dataclass(frozen=True, slots=True)
class PlacedPass:
    """A pass, its index in the pipeline, and its path in the request."""

    pass_: Pass
    number: int
    where: str


@dataclass(frozen=True, slots=True)
class PassRun:
    """The totals of all runs of one pass in a pipeline: a row of the report.

    Attributes:
        forced: Recompiles performed while it ran, each with what needed the code.
        saved_seconds: Estimated cost of recompiles that it requested but that were never performed.
        data: The result of an analysis.
    """

    name: str
    spelling: str
    seconds: float
    nodes_before: int
    nodes_after: int
    changed: bool
    requested: int
    performed: int
    note: str
    runs: int = 1
    forced: tuple[PerformedRecompile, ...] = ()
    saved_seconds: float = 0.0
    data: Mapping[str, Any] | None = None

    @property
    def saved(self) -> int:
        """Recompiles that were requested but never performed."""
        return max(0, self.requested - self.performed)

    def followed_by(self, later: PassRun) -> PassRun:
        """This run and a later one of the same pass, as one row."""
        return replace(
            later,
            seconds=self.seconds + later.seconds,
            nodes_before=self.nodes_before,
            changed=self.changed or later.changed,
            requested=self.requested + later.requested,
            performed=self.performed + later.performed,
            note="; ".join(note for note in (self.note, later.note) if note),
            runs=self.runs + later.runs,
            forced=self.forced + later.forced,
            saved_seconds=self.saved_seconds + later.saved_seconds,
            data=later.data if later.data is not None else self.data,
        )


class Verifier(Protocol):
    """Compares what a module computes before and after a pass."""

    def check(self, module: GraphModule, pass_: Pass) -> None:
        """Compare `module` with its last recorded state.

        Raises:
            PassError: Its results differ.
        """


class Driver:
    """Runs the passes of one job.

    Args:
        ledger: Counts every recompile, under the name of the pass that requested it.
        limits: Bounds of each pass.
        eager: Modules recompile at once.
        verifier: Checks the module after each pass that changed it.
    """

    def __init__(
        self,
        ledger: RecompileLedger,
        limits: PassLimits,
        *,
        eager: bool = False,
        verifier: Verifier | None = None,
    ) -> None:
        self._ledger = ledger
        self._limits = limits
        self._eager = eager
        self._verifier = verifier
        self._runs: dict[int, PassRun] = {}
        self._done: list[str] = []

    @property
    def runs(self) -> tuple[PassRun, ...]:
        """The totals of each pass so far, in pipeline order."""
        return tuple(self._runs[number] for number in sorted(self._runs))

    def adopt(self, module: GraphModule) -> GraphModule:
        """Makes a module, and nested ones, record in the job's ledger."""
        return make_lazy(module, self._ledger, eager=self._eager)

    def add_note(self, placed: PlacedPass, note: str) -> None:
        """Adds to the note of a pass that has run."""
        run = self._runs[placed.number]
        notes = [part for part in (run.note, note) if part]
        self._runs[placed.number] = replace(run, note="; ".join(notes))

    def run_one(
        self, placed: PlacedPass, module: GraphModule, rewrites: Mapping[int, Rewrites]
    ) -> tuple[GraphModule, bool]:
        """Runs a pass.

        Returns:
            The module after it, lazy including nested modules, and whether it changed.

        Raises:
            PassError: The pass failed, exceeded its bounds or changed the result; names the pass,
                its position, the node, and the passes that ran before.
        """
        pass_, ledger = placed.pass_, self._ledger
        nodes_before = _nodes(module)
        asked, events = ledger.requested(pass_.name), len(ledger.events)
        saved = ledger.saved_seconds(pass_.name)
        start = perf_counter()
        with ledger.in_scope(pass_.name):
            context = PassContext(rewrites.get(placed.number, ()), self._limits)
            result = self._guarded(placed, module, context)
            module = self.adopt(result.module)
        seconds = perf_counter() - start
        forced = tuple(ledger.events[events:])
        run = PassRun(
            name=pass_.name,
            spelling=spell_pipeline([pass_]),
            seconds=seconds,
            nodes_before=nodes_before,
            nodes_after=_nodes(module),
            changed=result.changed,
            requested=ledger.requested(pass_.name) - asked,
            performed=len(forced),
            note=result.note,
            forced=forced,
            saved_seconds=max(0.0, ledger.saved_seconds(pass_.name) - saved),
            data=result.data,
        )
        earlier = self._runs.get(placed.number)
        self._runs[placed.number] = earlier.followed_by(run) if earlier else run
        self._check(placed, module, run)
        self._done.append(pass_.name)
        return module, result.changed

    def _guarded(self, placed: PlacedPass, module: GraphModule, context: PassContext) -> PassResult:
        pass_, before = placed.pass_, self._done
        budget = self._limits.max_pass_seconds
        try:
            with time_limit(budget):
                return _reportable(pass_.run(module, context))
        except DecodeError:
            raise  # what the request says of a value cannot be
        except PassError as error:
            raise _at_its_node(error, error, module).at(placed.where, pass_.name, before) from error
        except OutOfTime as error:
            late = PassError(
                f"took longer than {budget:g} s (setting max_pass_seconds)", kind="limit"
            )
            raise _at_its_node(late, error, module).at(placed.where, pass_.name, before) from error
        except Exception as error:  # whatever a pass raises becomes an answer to its caller
            failed = PassError(f"{type(error).__name__}: {error}", kind="internal")
            raise _at_its_node(failed, error, module).at(
                placed.where, pass_.name, before
            ) from error

    def _check(self, placed: PlacedPass, module: GraphModule, run: PassRun) -> None:
        pass_, nodes = placed.pass_, self._limits.bound("max_nodes")
        if run.nodes_after > nodes.most:
            raise PassError(
                f"the graph has {run.nodes_after} nodes after the pass; the limit is "
                f"{nodes.most}{nodes}",
                kind="limit",
                field=placed.where,
                pass_name=pass_.name,
                before=self._done,
            )
        if self._verifier is None or not (run.changed and pass_.mutates):
            return
        try:
            with self._ledger.in_scope("verify"):
                self._verifier.check(module, pass_)
        except DecodeError:
            raise  # what the request says of a value cannot be
        except PassError as error:
            raise error.at(placed.where, pass_.name, self._done) from error


def _reportable(result: PassResult) -> PassResult:
    """The result; raises if its data cannot be put into a report, which is a bug of the pass."""
    json.dumps(result.data)
    return result


def _nodes(module: GraphModule) -> int:
    return len(module.graph.nodes)


def _at_its_node(error: PassError, raised: BaseException, module: GraphModule) -> PassError:
    """An error with the graph of its node; for an unexpected error, with the node as well."""
    node, name = _node_of(raised), error.node
    meant = error is raised
    if meant and (name is None or error.graph is None):
        return error
    if not meant:
        name = node.name if node is not None else None
    parts = {p: part for p, part in module.named_modules() if isinstance(part, GraphModule)}
    if node is not None and node.name == name:
        for path, part in parts.items():
            if part.graph is node.graph:
                return error.of_node(name, path)
    # A name that occurs in several graphs does not identify the graph.
    named = [path for path, part in parts.items() if any(n.name == name for n in part.graph.nodes)]
    return error.of_node(name, named[0] if meant and len(named) == 1 else None)


def _node_of(error: BaseException) -> Node | None:
    """The node that a pass was processing when it raised: the innermost local that is a node."""
    found: Node | None = None
    trace = error.__traceback__
    while trace is not None:
        candidate = trace.tb_frame.f_locals.get("node")
        found = candidate if isinstance(candidate, Node) else found
        trace = trace.tb_next
    return found

"""The report of a pipeline, as a message."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.json_format import ParseDict
from torch.fx import GraphModule

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.lazy import LazyModule, PerformedRecompile, RecompileLedger, ScopeCount
from lazyfx_server.passes.driver import PassRun
from lazyfx_server.passes.pipeline import PipelineOutcome

# The row of temporary modules that passes built: patterns, copies.
BUILT_BY_PASSES = "*"


def report_of(outcome: PipelineOutcome, ledger: RecompileLedger) -> pb.CompileReport:
    """The part of a compile's report that comes from the passes and the ledger."""
    basis = pb.ESTIMATE_BASIS_MEASURED if ledger.cost.measured else pb.ESTIMATE_BASIS_FITTED
    modules = _modules(outcome.module, ledger)
    return pb.CompileReport(
        recompiles=_recompiles(ledger.requested(), ledger.performed()),
        passes=[_pass_report(run) for run in outcome.runs],
        saved_seconds=ledger.saved_seconds(),
        saved_basis=basis,
        performed_seconds=ledger.performed_seconds(),
        stale=any(row.stale for row in modules),
        modules=modules,
    )


def _modules(module: GraphModule, ledger: RecompileLedger) -> list[pb.ModuleReport]:
    rows = []
    counted = [0, 0]
    for path, part in module.named_modules():
        if not isinstance(part, GraphModule):
            continue
        count: ScopeCount = ledger.of_module(part)
        counted[0] += count.requested
        counted[1] += count.performed
        rows.append(
            pb.ModuleReport(
                path=path,
                recompiles=_recompiles(count.requested, count.performed),
                nodes=len(part.graph.nodes),
                stale=isinstance(part, LazyModule) and part.stale,
            )
        )
    requested, done = ledger.requested() - counted[0], ledger.performed() - counted[1]
    if requested or done:
        gone = _recompiles(requested, done)
        rows.append(pb.ModuleReport(path=BUILT_BY_PASSES, recompiles=gone))
    return rows


def _pass_report(run: PassRun) -> pb.PassReport:
    report = pb.PassReport(
        name=run.name,
        spelling=run.spelling,
        seconds=run.seconds,
        nodes_before=run.nodes_before,
        nodes_after=run.nodes_after,
        changed=run.changed,
        recompiles=_recompiles(run.requested, run.performed),
        note=run.note,
        runs=run.runs,
        forced=_forced(run.forced),
        saved_seconds=run.saved_seconds,
    )
    if run.data is not None:
        ParseDict(dict(run.data), report.data)
    return report


def _forced(events: Sequence[PerformedRecompile]) -> list[pb.ForcedRecompiles]:
    rows: dict[tuple[str, str], pb.ForcedRecompiles] = {}
    for event in events:
        place = (event.trigger, event.where)
        new = pb.ForcedRecompiles(trigger=event.trigger, where=event.where)
        row = rows.setdefault(place, new)
        row.count += 1
        row.seconds += event.seconds
    return list(rows.values())


def _recompiles(requested: int, done: int) -> pb.Recompiles:
    return pb.Recompiles(requested=requested, performed=done, saved=max(0, requested - done))

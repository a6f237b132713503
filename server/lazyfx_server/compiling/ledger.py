"""The whole server's ledger: what was asked for, done and saved since it started.

It hears the same events as the metrics, so that both tell the same counts.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.store import StoreStats
from lazyfx_server.telemetry import (
    CompileFinished,
    Event,
    LookupMade,
    OverheadSpent,
    RecompilesPerformed,
    Reused,
)


@dataclass(slots=True)
class _PassTotals:
    runs: int = 0
    seconds: float = 0.0
    requested: int = 0
    performed: int = 0


class ServerLedger:
    """Adds events up; `stats` tells the sums."""

    def __init__(self) -> None:
        self._since = Timestamp()
        self._since.GetCurrentTime()
        self._requested = 0
        self._performed = 0
        self._saved_seconds = 0.0
        self._reused_seconds = 0.0
        self._pass_seconds = 0.0
        self._overhead_seconds = 0.0
        self._lookups: defaultdict[str, int] = defaultdict(int)
        self._misses: defaultdict[str, int] = defaultdict(int)
        self._passes: defaultdict[str, _PassTotals] = defaultdict(_PassTotals)

    def observe(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, LookupMade):
            self._lookups[event.result] += 1
            if event.miss_reason:
                self._misses[event.miss_reason] += 1
        elif isinstance(event, Reused):
            self._reused_seconds += event.seconds
        elif isinstance(event, RecompilesPerformed):
            self._performed += event.count
        elif isinstance(event, OverheadSpent):
            self._overhead_seconds += event.seconds
        elif isinstance(event, CompileFinished):
            self._compile_finished(event)

    def _compile_finished(self, event: CompileFinished) -> None:
        self._requested += event.pipeline_requested
        self._performed += sum(count for _, _, count in event.performed)
        self._saved_seconds += event.saved_seconds
        self._pass_seconds += event.pass_seconds
        self._overhead_seconds += event.overhead_seconds
        for run in event.passes:
            totals = self._passes[run.name]
            totals.runs += 1
            totals.seconds += run.seconds
            totals.requested += run.requested
            totals.performed += run.performed
            self._requested += run.requested

    def stats(self, store: StoreStats) -> pb.GetStatsResponse:
        """The sums, with what the store holds now."""
        return pb.GetStatsResponse(
            recompiles=_recompiles(self._requested, self._performed),
            saved_seconds=self._saved_seconds,
            reused_seconds=self._reused_seconds,
            pass_seconds=self._pass_seconds,
            overhead_seconds=self._overhead_seconds,
            hits=self._lookups["hit"],
            misses=self._lookups["miss"],
            joins=self._lookups["joined"],
            miss_reasons=[
                pb.MissCount(reason=pb.MissReason.Value(reason), count=count)
                for reason, count in sorted(self._misses.items())
            ],
            passes=[
                pb.PassCount(
                    name=name,
                    runs=totals.runs,
                    seconds=totals.seconds,
                    recompiles=_recompiles(totals.requested, totals.performed),
                )
                for name, totals in sorted(self._passes.items())
            ],
            store=pb.StoreStats(
                entries=store.entries,
                bytes=store.bytes,
                limit_bytes=store.limit_bytes,
                evictions=store.evictions,
            ),
            since=self._since,
        )


def _recompiles(requested: int, performed: int) -> pb.Recompiles:
    return pb.Recompiles(
        requested=requested, performed=performed, saved=max(0, requested - performed)
    )

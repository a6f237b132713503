"""What each event adds to which count, in one place, so that ledger and metrics always agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from lazyfx_server.telemetry import events

Key: TypeAlias = "tuple[str, ...]"
"""A count's name and its labels."""

REQUESTED, PERFORMED, SAVED = "requested", "performed", "saved"
PERFORMED_SECONDS, SAVED_SECONDS = "performed_seconds", "saved_seconds"
REUSED_SECONDS, OVERHEAD_SECONDS = "reused_seconds", "overhead_seconds"
LOOKUPS, MISSES = "lookups", "misses"
PASS_RUNS, PASS_SECONDS = "pass_runs", "pass_seconds"

BETWEEN_PASSES, OUTSIDE = "pipeline", "none"
MEASURED, FITTED = "measured", "fitted"


def counts_of(event: events.Event) -> Iterable[tuple[Key, float]]:
    """The counts that an event adds to, with the amounts."""
    of = _COUNTED.get(type(event))
    return of(event) if of is not None else ()


def _of_lookup(event: events.LookupMade) -> Iterable[tuple[Key, float]]:
    lookup = ((LOOKUPS, event.result), event.count)
    if event.result != "miss":
        return (lookup,)
    return lookup, ((MISSES, event.miss_reason.removeprefix("MISS_REASON_").lower()), event.count)


def _of_reuse(event: events.Reused) -> Iterable[tuple[Key, float]]:
    return (((REUSED_SECONDS,), max(0.0, event.seconds)),)


def _of_overhead(event: events.OverheadSpent) -> Iterable[tuple[Key, float]]:
    return (((OVERHEAD_SECONDS, event.stage), max(0.0, event.seconds)),)


def _of_rendering(event: events.RecompilesPerformed) -> Iterable[tuple[Key, float]]:
    return (
        ((PERFORMED, event.pass_name or OUTSIDE, event.trigger), event.count),
        ((PERFORMED_SECONDS,), max(0.0, event.seconds)),
    )


def _of_compile(event: events.CompileFinished) -> Iterator[tuple[Key, float]]:
    basis = MEASURED if event.saved_is_measured else FITTED
    yield (SAVED_SECONDS, basis), max(0.0, event.saved_seconds)
    yield (PERFORMED_SECONDS,), max(0.0, event.performed_seconds)
    yield (OVERHEAD_SECONDS, "codec"), max(0.0, event.codec_seconds)
    yield (OVERHEAD_SECONDS, "queue"), max(0.0, event.queue_seconds)
    rest = event.overhead_seconds - event.codec_seconds - event.queue_seconds
    yield (OVERHEAD_SECONDS, "other"), max(0.0, rest)
    between = 0
    for name, trigger, count in event.performed:
        yield (PERFORMED, name or BETWEEN_PASSES, trigger), count
        between += 0 if name else count
    for run in event.passes:
        yield (PASS_RUNS, run.name), run.runs
        yield (PASS_SECONDS, run.name), run.seconds
        yield (REQUESTED, run.name), max(0, run.requested)
        yield (SAVED, run.name), max(0, run.requested - run.performed)
    yield (REQUESTED, BETWEEN_PASSES), max(0, event.pipeline_requested)
    yield (SAVED, BETWEEN_PASSES), max(0, event.pipeline_requested - between)


# Dispatch by exact class, for speed.
_COUNTED: Mapping[type, Callable[[Any], Iterable[tuple[Key, float]]]] = {
    events.LookupMade: _of_lookup,
    events.Reused: _of_reuse,
    events.OverheadSpent: _of_overhead,
    events.RecompilesPerformed: _of_rendering,
    events.CompileFinished: _of_compile,
}

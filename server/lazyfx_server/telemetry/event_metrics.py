"""The metrics that count or time events, as a table.

Counts that the ledger keeps as well are in `ledger_counters`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, TypeAlias

from lazyfx_server.telemetry import events, labels

_FAST: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
_SLOW: Final = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

LabelValues: TypeAlias = "tuple[str, ...]"
Samples: TypeAlias = "Iterable[tuple[LabelValues, float]]"


@dataclass(frozen=True, slots=True)
class EventMetric:
    """A counter, or a histogram if it has buckets, of one type of event.

    Attributes:
        event: The type.
        name: Name of the metric, without prefix and suffix.
        meaning: What it counts.
        samples: What an event adds: the values of the labels, and an amount to count or to sort
            into a bucket. Annotated with Any, because each function takes its type of event.
        labels: The labels and their values, in the order of `samples`.
        buckets: Upper bounds of a histogram's buckets.
    """

    event: type[events.Event]
    name: str
    meaning: str
    samples: Callable[[Any], Samples]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    buckets: Sequence[float] = ()


def event_metrics(passes: Sequence[str], given: labels.DefinedElsewhere) -> list[EventMetric]:
    """The metrics of a server.

    Args:
        passes: The values of the label "pass".
        given: Values of labels that other packages define.
    """
    kinds = {"kind": given.artifact_kinds}
    return [
        EventMetric(
            events.CompileFinished,
            "compile_seconds",
            "Seconds of a compile in its worker",
            lambda event: [((), event.seconds)],
            buckets=(*_FAST[3:], *_SLOW),
        ),
        EventMetric(
            events.CompileFinished,
            "pass_seconds",
            "Seconds of one pass",
            lambda event: [((run.name,), run.seconds) for run in event.passes],
            {"pass": passes},
            (*_FAST, *_SLOW[:7]),
        ),
        EventMetric(
            events.ArtifactServed,
            "render_seconds",
            "Seconds of rendering an artifact",
            _of_rendering,
            kinds,
            (*_FAST[1:], *_SLOW[:7]),
        ),
        EventMetric(
            events.ArtifactServed,
            "artifacts",
            "Artifacts sent",
            _once("kind", "source"),
            {**kinds, "source": labels.ARTIFACT_SOURCES},
        ),
        EventMetric(
            events.ArtifactServed,
            "artifact_bytes",
            "Bytes of artifacts sent",
            lambda event: [((event.kind,), event.bytes)],
            kinds,
        ),
        EventMetric(
            events.NativeCompiled,
            "native_compiles",
            "Native compiles ended",
            _once("result"),
            {"result": labels.NATIVE_RESULTS},
        ),
        EventMetric(
            events.NativeCompiled,
            "repeated_blocks",
            "Blocks of graphs that were not compiled because they equal others",
            lambda event: [((), event.repeated_blocks)],
        ),
        *_of_kernels(),
        *_of_flights(),
        *_of_jobs(given),
        *_of_stores(given),
        *_of_calls(given),
    ]


def _of_kernels() -> list[EventMetric]:
    return [
        EventMetric(
            events.KernelProvided,
            "kernels",
            "C++ compiles that native jobs asked for",
            _once("source"),
            {"source": labels.KERNEL_SOURCES},
        ),
        EventMetric(
            events.KernelProvided,
            "kernel_compile_seconds",
            "Seconds in the C++ compiler for native jobs",
            lambda event: [((), event.spent_seconds)],
        ),
        EventMetric(
            events.KernelProvided,
            "kernel_saved_seconds",
            "Seconds of C++ compiles whose output was used again",
            lambda event: [((), event.saved_seconds)],
        ),
    ]


def _of_flights() -> list[EventMetric]:
    return [
        EventMetric(
            events.FlightAbandoned,
            "abandoned",
            "Single flights whose last caller went away",
            _once("stage", "outcome"),
            {"stage": labels.STAGES, "outcome": labels.ABANDONMENTS},
        ),
        EventMetric(
            events.FleetFlightEnded,
            "fleet_flights",
            "Flights of servers that share a store, as they ended on this one",
            _once("stage", "outcome"),
            {"stage": labels.STAGES, "outcome": labels.FLEET_OUTCOMES},
        ),
    ]


def _of_jobs(given: labels.DefinedElsewhere) -> list[EventMetric]:
    return [
        EventMetric(
            events.JobStarted,
            "queue_seconds",
            "Seconds that a job waited for a worker",
            lambda event: [((event.pool, event.priority), event.waited)],
            {"pool": labels.POOLS, "priority": given.priorities},
            (*_FAST[3:], *_SLOW),
        ),
        EventMetric(
            events.WorkRefused,
            "work_refused",
            "Jobs refused before they began",
            _once("pool", "reason"),
            {"pool": labels.POOLS, "reason": labels.REFUSAL_REASONS},
        ),
        EventMetric(
            events.JobRetried,
            "job_retries",
            "Jobs retried because their worker died",
            _once("job"),
            {"job": labels.JOBS},
        ),
        EventMetric(
            events.GraphRefused,
            "graphs_refused",
            "Jobs refused because workers died on their graph",
            _once("job"),
            {"job": labels.JOBS},
        ),
        EventMetric(
            events.SourceRefused,
            "sources_refused",
            "Generated sources that differed from their graphs, not served",
            _once("job"),
            {"job": labels.SOURCE_JOBS},
        ),
        EventMetric(
            events.WorkerRestarted,
            "worker_restarts",
            "Worker processes replaced",
            _once("reason"),
            {"reason": given.restart_reasons},
        ),
    ]


def _of_stores(given: labels.DefinedElsewhere) -> list[EventMetric]:
    operations = {"operation": given.store_operations}
    return [
        EventMetric(
            events.StoreFailed,
            "store_errors",
            "Failed store operations, answered as misses",
            _once("tier", "operation"),
            {"tier": given.tiers, **operations},
        ),
        EventMetric(
            events.StoreSkipped,
            "store_skipped",
            "Store operations left out because the store does not answer in time",
            _once("tier", "operation"),
            {"tier": given.remote_tiers, **operations},
        ),
        EventMetric(
            events.EntryCorrupt,
            "store_corrupt",
            "Corrupt entries quarantined",
            _once("tier"),
            {"tier": given.tiers},
        ),
    ]


def _of_calls(given: labels.DefinedElsewhere) -> list[EventMetric]:
    return [
        EventMetric(
            events.RequestHandled,
            "requests",
            "RPCs ended",
            lambda event: [((event.method, event.code), len(event.seconds))],
            {"method": given.methods, "code": given.codes},
        ),
        EventMetric(
            events.RequestHandled,
            "request_seconds",
            "Seconds of an RPC",
            lambda event: [((event.method,), seconds) for seconds in event.seconds],
            {"method": given.methods},
            (*_FAST, *_SLOW),
        ),
        EventMetric(
            events.UpstreamAsked,
            "upstream_requests",
            "Requests that the upstream was asked for",
            _once("what", "outcome"),
            {"what": labels.UPSTREAM_QUESTIONS, "outcome": labels.UPSTREAM_OUTCOMES},
        ),
        EventMetric(
            events.UpstreamTransferred,
            "upstream_bytes",
            "Bytes of messages to and from the upstream",
            lambda event: [(("sent",), event.sent), (("received",), event.received)],
            {"direction": ("sent", "received")},
        ),
    ]


def _once(*fields: str) -> Callable[[Any], Samples]:
    """Count each event once, under these of its fields."""
    first, *rest = map(attrgetter, fields)
    return lambda event: [((first(event), *(of(event) for of in rest)), 1.0)]


def _of_rendering(event: events.ArtifactServed) -> Samples:
    return [((event.kind,), event.seconds)] if event.source == "rendered" else ()

"""Events as Prometheus metrics. The only file that imports prometheus_client.

Every metric is described in docs/metrics.md. Labels take a bounded set of
values, all of which exist from the start with the value 0, so that rate() sees the first
increase; anything else is counted as "other".
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from lazyfx_server.telemetry import counting, events
from lazyfx_server.telemetry.gauges import Gauges
from lazyfx_server.telemetry.labels import (
    CODES,
    FLEET_OUTCOMES,
    JOBS,
    KERNEL_SOURCES,
    METHODS,
    OTHER,
    POOLS,
    PRIORITIES,
    REFUSAL_REASONS,
    REMOTE_TIERS,
    RESTART_REASONS,
    SANDBOX_LAYERS,
    STAGES,
    STORE_OPERATIONS,
    TIERS,
    UPSTREAM_OUTCOMES,
)
from lazyfx_server.telemetry.ledger_counters import LedgerCounter, ledger_counters

_FAST: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
_SLOW: Final = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class PrometheusObserver:
    """Counts events in the metrics of a registry.

    Args:
        registry: The registry of the metrics; create one per server.
        pass_names: The passes of this server: the values of the label "pass".
        artifact_kinds: The kinds of artifact of this server: the values of the label "kind".
        version: Of lazyfx.
        torch_version: Of torch.
        python_version: Of Python.
        gauges: Sources of gauge values.
        restored: Counts that the ledger restored from earlier runs.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        pass_names: Iterable[str],
        *,
        artifact_kinds: Iterable[str],
        version: str,
        torch_version: str,
        python_version: str,
        gauges: Gauges,
        restored: Mapping[counting.Key, float] | None = None,
    ) -> None:
        # prometheus_client has only a process-wide switch for this. A creation time for each of
        # hundreds of series doubles every scrape, and nothing here is ever reset.
        disable_created_metrics()
        passes = (*sorted(pass_names), "pipeline", "none")
        make = _Maker(registry)
        self._counters: defaultdict[str, list[tuple[LedgerCounter, _Family[Counter]]]]
        self._counters = defaultdict(list)
        for each in ledger_counters(passes):
            family = make.counter(each.metric, each.meaning, each.labels)
            self._counters[each.count].append((each, family))
        self._compile_seconds = make.histogram(
            "compile_seconds", "Seconds of a compile in its worker", (*_FAST[3:], *_SLOW), {}
        ).of()
        self._pass_seconds = make.histogram(
            "pass_seconds", "Seconds of one pass", (*_FAST, *_SLOW[:7]), {"pass": passes}
        )
        kinds = {"kind": tuple(artifact_kinds)}
        self._render_seconds = make.histogram(
            "render_seconds", "Seconds of rendering an artifact", (*_FAST[1:], *_SLOW[:7]), kinds
        )
        self._artifacts = make.counter(
            "artifacts", "Artifacts sent", {**kinds, "source": ("rendered", "cached")}
        )
        self._native = make.counter(
            "native_compiles",
            "Native compiles ended",
            {"result": ("made", "only_traced", "failed", "stopped")},
        )
        self._kernels = make.counter(
            "kernels", "C++ compiles that native jobs asked for", {"source": KERNEL_SOURCES}
        )
        self._kernel_seconds = make.counter(
            "kernel_compile_seconds", "Seconds in the C++ compiler for native jobs", {}
        ).of()
        self._kernel_saved_seconds = make.counter(
            "kernel_saved_seconds",
            "Seconds of C++ compiles whose output was used again",
            {},
        ).of()
        self._queue_seconds = make.histogram(
            "queue_seconds",
            "Seconds that a job waited for a worker",
            (*_FAST[3:], *_SLOW),
            {"pool": POOLS, "priority": PRIORITIES},
        )
        self._work_refused = make.counter(
            "work_refused",
            "Jobs refused before they began",
            {"pool": POOLS, "reason": REFUSAL_REASONS},
        )
        self._abandoned = make.counter(
            "abandoned",
            "Single flights whose last caller went away",
            {"stage": STAGES, "outcome": ("dropped", "stopped", "continued")},
        )
        self._fleet_flights = make.counter(
            "fleet_flights",
            "Flights of servers that share a store, as they ended on this one",
            {"stage": STAGES, "outcome": FLEET_OUTCOMES},
        )
        self._job_retries = make.counter(
            "job_retries", "Jobs retried because their worker died", {"job": JOBS}
        )
        self._graphs_refused = make.counter(
            "graphs_refused", "Jobs refused because workers died on their graph", {"job": JOBS}
        )
        self._sources_refused = make.counter(
            "sources_refused",
            "Generated sources that differed from their graphs, not served",
            {"job": ("compile", "render", "native", "build")},
        )
        self._artifact_bytes = make.counter("artifact_bytes", "Bytes of artifacts sent", kinds)
        self._store_errors = make.counter(
            "store_errors",
            "Failed store operations, answered as misses",
            {"tier": TIERS, "operation": STORE_OPERATIONS},
        )
        self._store_skipped = make.counter(
            "store_skipped",
            "Store operations left out because the store does not answer in time",
            {"tier": REMOTE_TIERS, "operation": STORE_OPERATIONS},
        )
        self._store_corrupt = make.counter(
            "store_corrupt", "Corrupt entries quarantined", {"tier": TIERS}
        )
        self._restarts = make.counter(
            "worker_restarts", "Worker processes replaced", {"reason": RESTART_REASONS}
        )
        self._requests = make.counter("requests", "RPCs ended", {"method": METHODS, "code": CODES})
        self._request_seconds = make.histogram(
            "request_seconds", "Seconds of an RPC", (*_FAST, *_SLOW), {"method": METHODS}
        )
        self._upstream_asked = make.counter(
            "upstream_requests",
            "Requests that the upstream was asked for",
            {"what": ("compile", "artifact"), "outcome": UPSTREAM_OUTCOMES},
        )
        self._upstream_bytes = make.counter(
            "upstream_bytes",
            "Bytes of messages to and from the upstream",
            {"direction": ("sent", "received")},
        )
        build = Info("lazyfx_build", "Versions of the running server", registry=registry)
        build.info({"version": version, "torch": torch_version, "python": python_version})
        registry.register(_Levels(gauges))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        for key, amount in (restored or {}).items():
            self._add(key, amount)
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.CompileFinished: self._compile_finished,
            events.ArtifactServed: self._artifact_served,
            events.SourceRefused: lambda event: self._sources_refused.of(event.job).inc(),
            events.NativeCompiled: lambda event: self._native.of(event.result).inc(),
            events.KernelProvided: self._kernel_provided,
            events.JobStarted: lambda event: self._queue_seconds.of(
                event.pool, event.priority
            ).observe(event.waited),
            events.WorkRefused: lambda event: self._work_refused.of(event.pool, event.reason).inc(),
            events.FlightAbandoned: lambda event: self._abandoned.of(
                event.stage, event.outcome
            ).inc(),
            events.FleetFlightEnded: lambda event: self._fleet_flights.of(
                event.stage, event.outcome
            ).inc(),
            events.JobRetried: lambda event: self._job_retries.of(event.job).inc(),
            events.GraphRefused: lambda event: self._graphs_refused.of(event.job).inc(),
            events.StoreFailed: self._store_failed,
            events.StoreSkipped: lambda event: self._store_skipped.of(
                event.tier, event.operation
            ).inc(),
            events.EntryCorrupt: self._entry_corrupt,
            events.WorkerRestarted: self._worker_restarted,
            events.RequestHandled: self._request_handled,
            events.UpstreamAsked: lambda event: self._upstream_asked.of(
                event.what, event.outcome
            ).inc(),
            events.UpstreamTransferred: self._upstream_transferred,
        }

    def observe(self, event: events.Event) -> None:
        """Count an event."""
        for key, amount in counting.counts_of(event):
            self._add(key, amount)
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _add(self, key: counting.Key, amount: float) -> None:
        for counter, family in self._counters.get(key[0], ()):
            if counter.includes(key):
                family.of(*counter.values(key)).inc(amount)

    def _compile_finished(self, event: events.CompileFinished) -> None:
        self._compile_seconds.observe(event.seconds)
        for run in event.passes:
            self._pass_seconds.of(run.name).observe(run.seconds)

    def _artifact_served(self, event: events.ArtifactServed) -> None:
        self._artifacts.of(event.kind, event.source).inc()
        self._artifact_bytes.of(event.kind).inc(event.bytes)
        if event.source == "rendered":
            self._render_seconds.of(event.kind).observe(event.seconds)

    def _kernel_provided(self, event: events.KernelProvided) -> None:
        self._kernels.of(event.source).inc()
        self._kernel_seconds.inc(event.spent_seconds)
        self._kernel_saved_seconds.inc(event.saved_seconds)

    def _store_failed(self, event: events.StoreFailed) -> None:
        self._store_errors.of(event.tier, event.operation).inc()

    def _entry_corrupt(self, event: events.EntryCorrupt) -> None:
        self._store_corrupt.of(event.tier).inc()

    def _worker_restarted(self, event: events.WorkerRestarted) -> None:
        self._restarts.of(event.reason).inc()

    def _request_handled(self, event: events.RequestHandled) -> None:
        self._requests.of(event.method, event.code).inc()
        self._request_seconds.of(event.method).observe(event.seconds)

    def _upstream_transferred(self, event: events.UpstreamTransferred) -> None:
        self._upstream_bytes.of("sent").inc(event.sent)
        self._upstream_bytes.of("received").inc(event.received)


def new_registry() -> CollectorRegistry:
    """A registry for the metrics of one server."""
    return CollectorRegistry()


def exposition(registry: CollectorRegistry) -> Callable[[str], tuple[str, bytes]]:
    """Return a function from an Accept header to (content type, metrics in that format)."""

    def render(accept: str) -> tuple[str, bytes]:
        encode, content_type = choose_encoder(accept)
        return content_type, encode(registry)

    return render


M = TypeVar("M", bound=MetricWrapperBase)


class _Family(Generic[M]):
    """A metric with all its series resolved: finding one is a dictionary lookup."""

    def __init__(self, metric: M, labels: Mapping[str, Sequence[str]]) -> None:
        self._known = [frozenset(values) for values in labels.values()]
        choices = [(*values, OTHER) for values in labels.values()]
        self._series: dict[tuple[str, ...], M] = {
            chosen: metric.labels(*chosen) if chosen else metric
            for chosen in itertools.product(*choices)
        }

    def of(self, *values: str) -> M:
        series = self._series.get(values)
        if series is None:
            pairs = zip(values, self._known, strict=True)
            series = self._series[tuple(v if v in known else OTHER for v, known in pairs)]
        return series


class _Maker:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(
        self, name: str, meaning: str, labels: Mapping[str, Sequence[str]]
    ) -> _Family[Counter]:
        metric = Counter(f"lazyfx_{name}", meaning, list(labels), registry=self._registry)
        return _Family(metric, labels)

    def histogram(
        self,
        name: str,
        meaning: str,
        buckets: Sequence[float],
        labels: Mapping[str, Sequence[str]],
    ) -> _Family[Histogram]:
        metric = Histogram(
            f"lazyfx_{name}", meaning, list(labels), registry=self._registry, buckets=buckets
        )
        return _Family(metric, labels)


class _Levels(Collector):
    """Gauges that are read at each scrape."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        yield from self._store()
        flights = GaugeMetricFamily("lazyfx_in_flight", "Running jobs", labels=["stage"])
        under_way = self._gauges.in_flight()
        for stage in STAGES:
            flights.add_metric([stage], under_way.get(stage, 0))
        yield flights
        backlog = GaugeMetricFamily(
            "lazyfx_backlog_seconds",
            "Estimated seconds in which the workers would finish what waits and runs",
            labels=["pool"],
        )
        seconds = self._gauges.backlog()
        for pool in POOLS:
            backlog.add_metric([pool], seconds.get(pool, 0.0))
        yield backlog
        yield GaugeMetricFamily(
            "lazyfx_memory_used_ratio",
            "Part of the memory of the container, or of the machine, that is in use",
            value=self._gauges.memory_used(),
        )
        yield GaugeMetricFamily(
            "lazyfx_memory_refusing",
            "1 while new work is refused because the memory is nearly used up",
            value=float(self._gauges.refusing()),
        )
        yield GaugeMetricFamily("lazyfx_workers", "Worker processes", value=self._gauges.workers())
        total = GaugeMetricFamily(
            "lazyfx_device_memory_total_bytes", "Memory of a device", labels=["device"]
        )
        free = GaugeMetricFamily(
            "lazyfx_device_memory_free_bytes", "Free memory of a device", labels=["device"]
        )
        for device in self._gauges.devices():
            total.add_metric([device.device], device.total_bytes)
            free.add_metric([device.device], device.free_bytes)
        yield from (total, free)
        held = self._gauges.sandbox()
        layers = GaugeMetricFamily(
            "lazyfx_sandbox_layers", "1 if this layer confines the workers", labels=["layer"]
        )
        for layer in SANDBOX_LAYERS:
            layers.add_metric([layer], float(layer in held))
        yield layers
        native = GaugeMetricFamily(
            "lazyfx_native_sandbox_layers",
            "1 if this layer confines native compiles",
            labels=["layer"],
        )
        held_native = self._gauges.native_sandbox()
        for layer in (*SANDBOX_LAYERS, "user"):
            native.add_metric([layer], float(layer in held_native))
        yield native
        yield from self._engine()
        upstream = self._gauges.upstream_in_use()
        if upstream is not None:
            yield GaugeMetricFamily(
                "lazyfx_upstream_in_use",
                "1 if the upstream is asked at present",
                value=float(upstream),
            )

    def _engine(self) -> Iterator[Metric]:
        connected = GaugeMetricFamily("lazyfx_engine_connected", "1 if Ray's head node answers")
        nodes = GaugeMetricFamily("lazyfx_engine_nodes", "Nodes of the engine", labels=["state"])
        if levels := self._gauges.engine():
            connected.add_metric([], levels["connected"])
            nodes.add_metric(["used"], levels["nodes"])
            nodes.add_metric(["refused"], levels["refused"])
        yield from (connected, nodes)

    def _store(self) -> Iterator[Metric]:
        entries = GaugeMetricFamily("lazyfx_store_entries", "Entries", labels=["tier"])
        size = GaugeMetricFamily("lazyfx_store_bytes", "Bytes", labels=["tier"])
        limit = GaugeMetricFamily("lazyfx_store_limit_bytes", "Bound on bytes", labels=["tier"])
        evictions = CounterMetricFamily(
            "lazyfx_store_evictions", "Entries evicted", labels=["tier"]
        )
        for tier, levels in self._gauges.store().items():
            if tier in TIERS:
                entries.add_metric([tier], levels.entries)
                size.add_metric([tier], levels.bytes)
                limit.add_metric([tier], levels.limit_bytes)
                evictions.add_metric([tier], levels.evictions)
        in_use = GaugeMetricFamily(
            "lazyfx_store_in_use", "1 if this remote store is asked at present", labels=["tier"]
        )
        for tier, asked in self._gauges.stores_in_use().items():
            in_use.add_metric([tier], float(asked))
        yield from (entries, size, limit, evictions, in_use)

"""Counts and times events in the metrics of a registry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from lazyfx_server.telemetry import counting, events
from lazyfx_server.telemetry.event_metrics import EventMetric, LabelValues, event_metrics
from lazyfx_server.telemetry.gauges import Gauges
from lazyfx_server.telemetry.labels import DefinedElsewhere
from lazyfx_server.telemetry.ledger_counters import LedgerCounter, ledger_counters
from lazyfx_server.telemetry.prometheus.level_collector import LevelCollector
from lazyfx_server.telemetry.prometheus.metric_series import Family, Maker


class PrometheusObserver:
    """Counts events in the metrics of a registry.

    Args:
        registry: The registry of the metrics; create one per server.
        given: Values of labels that other packages define.
        versions: Of lazyfx ("version"), torch and Python ("python").
        restored: Counts that the ledger restored from earlier runs.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        given: DefinedElsewhere,
        versions: Mapping[str, str],
        restored: Mapping[counting.Key, float] | None = None,
    ) -> None:
        # prometheus_client has only a process-wide switch for this. A creation time for each of
        # hundreds of series doubles every scrape, and nothing here is ever reset.
        disable_created_metrics()
        passes = (*sorted(given.passes), counting.BETWEEN_PASSES, counting.OUTSIDE)
        make = Maker(registry)
        self._counters: defaultdict[str, list[tuple[LedgerCounter, Family[Counter]]]]
        self._counters = defaultdict(list)
        for counter in ledger_counters(passes, given):
            family = make.counter(counter.metric, counter.meaning, counter.labels)
            self._counters[counter.count].append((counter, family))
        self._metrics: defaultdict[type, list[tuple[EventMetric, _Add]]] = defaultdict(list)
        for metric in event_metrics(passes, given):
            self._metrics[metric.event].append((metric, _adding(make, metric)))
        Info("lazyfx_build", "Versions of the running server", registry=registry).info(
            dict(versions)
        )
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        for key, amount in (restored or {}).items():
            self._count(key, amount)

    def observe(self, event: events.Event) -> None:
        """Count an event."""
        for key, amount in counting.counts_of(event):
            self._count(key, amount)
        for metric, add in self._metrics.get(type(event), ()):
            for values, amount in metric.samples(event):
                add(values, amount)

    def _count(self, key: counting.Key, amount: float) -> None:
        for counter, family in self._counters.get(key[0], ()):
            if counter.includes(key):
                family.of(counter.values(key)).inc(amount)


_Add = Callable[[LabelValues, float], None]


def _adding(make: Maker, metric: EventMetric) -> _Add:
    """Create the metric of a row; returns what adds to it."""
    if metric.buckets:
        times = make.histogram(metric.name, metric.meaning, metric.labels, metric.buckets)
        return lambda values, seconds: times.of(values).observe(seconds)
    counts = make.counter(metric.name, metric.meaning, metric.labels)
    return lambda values, amount: counts.of(values).inc(amount)


def export_levels(registry: CollectorRegistry, gauges: Gauges, given: DefinedElsewhere) -> None:
    """Export the state of a server as gauges, read at each scrape."""
    registry.register(LevelCollector(gauges, given))


def exposition(registry: CollectorRegistry) -> Callable[[str], tuple[str, bytes]]:
    """Return a function from an Accept header to (content type, metrics in that format)."""

    def render(accept: str) -> tuple[str, bytes]:
        encode, content_type = choose_encoder(accept)
        return content_type, encode(registry)

    return render

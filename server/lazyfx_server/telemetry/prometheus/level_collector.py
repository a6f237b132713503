"""Gauges: the state of a server, read at each scrape."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lazyfx_server.telemetry.gauges import Gauges
from lazyfx_server.telemetry.labels import POOLS, STAGES, DefinedElsewhere


class LevelCollector(Collector):
    """Gauges that are read at each scrape.

    Args:
        gauges: Sources of their values.
        given: Values of labels that other packages define.
    """

    def __init__(self, gauges: Gauges, given: DefinedElsewhere) -> None:
        self._gauges = gauges
        self._given = given

    def collect(self) -> Iterator[Metric]:
        """The gauges, with their values now."""
        yield from self._store()
        yield from self._jobs()
        yield from self._memory()
        yield GaugeMetricFamily("lazyfx_workers", "Worker processes", value=self._gauges.workers())
        yield from self._devices()
        yield from self._sandboxes()
        yield from self._engine()
        upstream = self._gauges.upstream_in_use()
        if upstream is not None:
            yield GaugeMetricFamily(
                "lazyfx_upstream_in_use",
                "1 if the upstream is asked at present",
                value=float(upstream),
            )

    def _jobs(self) -> Iterator[Metric]:
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

    def _memory(self) -> Iterator[Metric]:
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

    def _devices(self) -> Iterator[Metric]:
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

    def _sandboxes(self) -> Iterator[Metric]:
        known = self._given.sandbox_layers
        held = self._gauges.sandbox()
        layers = GaugeMetricFamily(
            "lazyfx_sandbox_layers", "1 if this layer confines the workers", labels=["layer"]
        )
        for layer in known:
            layers.add_metric([layer], float(layer in held))
        yield layers
        native = GaugeMetricFamily(
            "lazyfx_native_sandbox_layers",
            "1 if this layer confines native compiles",
            labels=["layer"],
        )
        held_native = self._gauges.native_sandbox()
        for layer in (*known, "user"):
            native.add_metric([layer], float(layer in held_native))
        yield native

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
            if tier in self._given.tiers:
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

"""The state of a server, exported as gauges."""

from __future__ import annotations

from lazyfx_server.assembling.compile_parts import Compiling
from lazyfx_server.assembling.event_counts import Counts
from lazyfx_server.assembling.store_parts import Storage
from lazyfx_server.assembling.worker_parts import Workers
from lazyfx_server.telemetry import Gauges
from lazyfx_server.telemetry.prometheus import export_levels


def export_state(counts: Counts, storage: Storage, workers: Workers, compiling: Compiling) -> None:
    """Export the state of these parts as gauges."""
    shared, engine, native = storage.shared, workers.engine, workers.native
    forwarding = compiling.forwarding
    gauges = Gauges(
        store=storage.store.tiers,
        stores_in_use=dict if shared is None else shared.available,
        in_flight=lambda: {
            "compile": compiling.compiler.in_flight,
            "render": compiling.artifacts.in_flight,
        },
        backlog=lambda: {
            "pass": workers.admission.backlog_seconds,
            "native": native.backlog_seconds,
        },
        memory_used=lambda: workers.memory.used_part,
        refusing=lambda: workers.memory.is_refusing,
        workers=workers.passes.count,
        devices=workers.devices.memory,
        sandbox=lambda: workers.passes.sandbox().layers,
        engine=dict if engine is None else lambda: engine.cluster.status.levels(),
        native_sandbox=lambda: native.layers,
        upstream_in_use=lambda: None if forwarding is None else forwarding.in_use,
    )
    export_levels(counts.metrics, gauges, counts.labels)

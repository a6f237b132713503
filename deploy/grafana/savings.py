"""The savings dashboard of lazyfx, as code.

`python deploy/grafana/savings.py` writes `dashboards/savings.json` beside this file;
with `--check` it writes nothing and fails when the committed file is not what this
script makes. Needs `grafana-foundation-sdk` (Python 3.11 or newer).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from panels import (
    BYTES,
    BYTES_PER_SECOND,
    COUNT,
    PER_SECOND,
    RATIO,
    SECONDS,
    SOURCE,
    Query,
    add_rows,
    balance,
    curves,
    gain,
    gauge,
    number,
    quantile,
    quantiles,
    rate,
    ratio,
    selected,
    stack,
)

OUTPUT = Path(__file__).parent / "dashboards" / "savings.json"

SAVED = "lazyfx_saved_seconds_total"
REUSED = "lazyfx_reused_seconds_total"
OVERHEAD = "lazyfx_overhead_seconds_total"
ASKED = "lazyfx_recompiles_requested_total"
DONE = "lazyfx_recompiles_performed_total"
SPARED = "lazyfx_recompiles_saved_total"
LOOKUPS = "lazyfx_lookups_total"
PASS_SECONDS = "lazyfx_pass_seconds"  # noqa: S105 - a pass over a graph, not a password
REQUESTS = "lazyfx_requests_total"
LATENCY = "lazyfx_request_seconds"
STORE_BYTES = "lazyfx_store_bytes"
STORE_LIMIT = "lazyfx_store_limit_bytes"
DEVICE_TOTAL = "lazyfx_device_memory_total_bytes"
DEVICE_FREE = "lazyfx_device_memory_free_bytes"

HIT, JOINED, MISS = 'result="hit"', 'result="joined"', 'result="miss"'
HIT_OR_JOINED = 'result=~"hit|joined"'
# Statuses that are the server's fault, not the caller's.
FAILED = 'code=~"INTERNAL|UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED"'

SAVED_ROW = (
    number("Recompiles asked", COUNT, gain(ASKED), "What passes asked torch.fx for."),
    number("Recompiles done", COUNT, gain(DONE), "Source code that was really generated."),
    number("Recompiles saved", COUNT, gain(SPARED), "Asked for and never done."),
    number("Share of recompiles saved", RATIO, ratio(gain(SPARED), gain(ASKED))),
    number("Saved seconds", SECONDS, gain(SAVED), "Estimated cost of the recompiles not done."),
    number(
        "Reused seconds",
        SECONDS,
        gain(REUSED),
        "Measured cost of the work that stored and shared results replaced, once per caller.",
    ),
    number("Overhead seconds", SECONDS, gain(OVERHEAD), "What lazyfx itself spent."),
    balance(
        "Net seconds",
        SECONDS,
        f"{gain(SAVED)} + {gain(REUSED)} - {gain(OVERHEAD)}",
        "Saved + reused - overhead. Negative where lazyfx costs more than it gives.",
    ),
    curves(
        "Recompiles",
        PER_SECOND,
        Query(rate(ASKED), "asked"),
        Query(rate(DONE), "done"),
        Query(rate(SPARED), "saved"),
    ),
    curves(
        "Seconds gained per second",
        SECONDS,
        Query(rate(SAVED), "saved"),
        Query(rate("lazyfx_saved_seconds_measured_total"), "of that measured"),
        Query(rate("lazyfx_performed_seconds_total"), "code generated"),
        Query(rate(REUSED), "reused"),
        Query(f"-{rate(OVERHEAD)}", "overhead"),
        Query(f"{rate(SAVED)} + {rate(REUSED)} - {rate(OVERHEAD)}", "net"),
        explanation="One second per second is the work of one core that nobody had to do.",
    ),
    stack("Overhead by stage", SECONDS, Query(rate(OVERHEAD, by="stage"), "{{stage}}")),
)

CACHE_ROW = (
    number("Hit ratio", RATIO, ratio(gain(LOOKUPS, HIT), gain(LOOKUPS))),
    number(
        "Answered without compiling",
        RATIO,
        ratio(gain(LOOKUPS, HIT_OR_JOINED), gain(LOOKUPS)),
        "Hits, and callers that joined a compile in flight.",
    ),
    number("Joins", COUNT, gain(LOOKUPS, JOINED), "Callers that shared a compile in flight."),
    number("Misses", COUNT, gain(LOOKUPS, MISS)),
    stack("Lookups", PER_SECOND, Query(rate(LOOKUPS, by="result"), "{{result}}")),
    curves(
        "Hit ratio over time", RATIO, Query(ratio(rate(LOOKUPS, HIT), rate(LOOKUPS)), "hit ratio")
    ),
    stack(
        "Why lookups missed",
        PER_SECOND,
        Query(rate("lazyfx_misses_total", by="reason"), "{{reason}}"),
    ),
)

PASSES_ROW = (
    stack(
        "Time by pass",
        SECONDS,
        Query(rate(f"{PASS_SECONDS}_sum", by="pass"), "{{pass}}"),
        explanation="Seconds spent in each pass per second.",
    ),
    curves(
        "Mean time of one run",
        SECONDS,
        Query(
            ratio(rate(f"{PASS_SECONDS}_sum", by="pass"), rate(f"{PASS_SECONDS}_count", by="pass")),
            "{{pass}}",
        ),
    ),
    curves("Compile time", SECONDS, *quantiles("lazyfx_compile_seconds")),
    stack("Recompiles asked by pass", PER_SECOND, Query(rate(ASKED, by="pass"), "{{pass}}")),
    stack(
        "Recompiles done by pass",
        PER_SECOND,
        Query(rate(DONE, by="pass"), "{{pass}}"),
        explanation="A pass that shows here forces generation, for example by calling the module.",
    ),
    stack("Recompiles done by trigger", PER_SECOND, Query(rate(DONE, by="trigger"), "{{trigger}}")),
)

RENDERING_ROW = (
    stack(
        "Artifacts handed out",
        PER_SECOND,
        Query(rate("lazyfx_artifacts_total", by="kind, source"), "{{kind}} {{source}}"),
    ),
    curves(
        "Render time, p95",
        SECONDS,
        Query(quantile(0.95, "lazyfx_render_seconds", by="kind"), "{{kind}}"),
    ),
    curves(
        "Sources refused",
        PER_SECOND,
        Query(rate("lazyfx_sources_refused_total", by="job"), "{{job}}"),
        explanation="Generated source that differed from its graph: a defect; it was not served.",
    ),
    stack(
        "Native compiles",
        PER_SECOND,
        Query(rate("lazyfx_native_compiles_total", by="result"), "{{result}}"),
    ),
    curves(
        "Equal blocks",
        PER_SECOND,
        Query(rate("lazyfx_repeated_blocks_total"), "not compiled again"),
        explanation="Blocks of graphs that are equal to another one, and so were compiled once.",
    ),
    stack(
        "Kernels",
        PER_SECOND,
        Query(rate("lazyfx_kernels_total", by="source"), "{{source}}"),
        explanation="C++ compiles that native jobs asked for: found and joined ones cost nothing.",
    ),
    curves(
        "C++ compiler time",
        RATIO,
        Query(rate("lazyfx_kernel_compile_seconds_total"), "spent"),
        Query(rate("lazyfx_kernel_saved_seconds_total"), "saved"),
        explanation="Seconds of C++ compilers per second.",
    ),
    stack(
        "Artifact bytes",
        BYTES_PER_SECOND,
        Query(rate("lazyfx_artifact_bytes_total", by="kind"), "{{kind}}"),
    ),
)

STORE_ROW = (
    curves(
        "Fill",
        RATIO,
        Query(ratio(gauge(STORE_BYTES, "tier"), gauge(STORE_LIMIT, "tier")), "{{tier}}"),
    ),
    curves(
        "Bytes",
        BYTES,
        Query(gauge(STORE_BYTES, "tier"), "{{tier}}"),
        Query(gauge(STORE_LIMIT, "tier"), "{{tier}} limit"),
    ),
    curves("Entries", COUNT, Query(gauge("lazyfx_store_entries", "tier"), "{{tier}}")),
    curves(
        "Evictions",
        PER_SECOND,
        Query(rate("lazyfx_store_evictions_total", by="tier"), "{{tier}}"),
    ),
    curves(
        "Errors",
        PER_SECOND,
        Query(rate("lazyfx_store_errors_total", by="tier, operation"), "{{tier}} {{operation}}"),
        Query(rate("lazyfx_store_skipped_total", by="tier"), "{{tier}} not asked"),
        explanation="An error here is a miss for the caller, never a failure.",
    ),
    curves(
        "Corrupt entries",
        PER_SECOND,
        Query(rate("lazyfx_store_corrupt_total", by="tier"), "{{tier}}"),
        explanation="Found by their digest on reading, set aside and computed again.",
    ),
)

UPSTREAM_ROW = (
    stack(
        "Asked",
        PER_SECOND,
        Query(rate("lazyfx_upstream_requests_total", by="what, outcome"), "{{what}} {{outcome}}"),
        explanation="Other than answered, refused, left and values: the work was done here.",
    ),
    curves(
        "Bytes",
        BYTES_PER_SECOND,
        Query(rate("lazyfx_upstream_bytes_total", by="direction"), "{{direction}}"),
    ),
    curves(
        "In use",
        COUNT,
        Query(gauge("lazyfx_upstream_in_use"), "servers that ask their upstream"),
        Query(f"sum(1 - {selected('lazyfx_upstream_in_use')})", "servers whose upstream is away"),
        explanation="Away, or it refuses them: they do the work themselves.",
    ),
)

WORKERS_ROW = (
    curves(
        "In flight",
        COUNT,
        Query(gauge("lazyfx_in_flight", "stage"), "{{stage}}"),
        Query(gauge("lazyfx_workers"), "workers"),
        explanation="Jobs above the line of workers are waiting.",
    ),
    curves(
        "Nodes of the engine",
        COUNT,
        Query(gauge("lazyfx_engine_nodes", "state"), "{{state}}"),
        Query(gauge("lazyfx_engine_connected"), "connected"),
        explanation="Empty without an engine: then the workers are processes of the servers.",
    ),
    curves(
        "Time to start, p99",
        SECONDS,
        Query(quantile(0.99, "lazyfx_queue_seconds", by="pool, priority"), "{{pool}} {{priority}}"),
        explanation="How long jobs wait for a worker; hits need none. Scale by this.",
    ),
    curves(
        "Time to clear the backlog",
        SECONDS,
        Query(f"max by (pool) ({selected('lazyfx_backlog_seconds')})", "{{pool}}"),
        explanation="Seconds until the fullest instance would be done, as estimated.",
    ),
    stack(
        "Work refused",
        PER_SECOND,
        Query(rate("lazyfx_work_refused_total", by="pool, reason"), "{{pool}} {{reason}}"),
    ),
    curves(
        "Memory of the server",
        RATIO,
        Query(selected("lazyfx_memory_used_ratio"), "{{instance}}"),
        Query(selected("lazyfx_memory_refusing"), "{{instance}} refuses work"),
    ),
    stack(
        "Restarts",
        PER_SECOND,
        Query(rate("lazyfx_worker_restarts_total", by="reason"), "{{reason}}"),
    ),
    curves(
        "Sandbox",
        COUNT,
        Query(f"min by (layer) ({selected('lazyfx_sandbox_layers')})", "{{layer}}"),
        Query(f"min by (layer) ({selected('lazyfx_native_sandbox_layers')})", "native {{layer}}"),
        explanation="1 where the layer confines the workers of every instance.",
    ),
    curves(
        "Deaths on a graph",
        PER_SECOND,
        Query(rate("lazyfx_job_retries_total", by="job"), "{{job}} tried again"),
        Query(rate("lazyfx_graphs_refused_total", by="job"), "{{job}} refused"),
        explanation="Refused: two workers have died on the graph; the log names it.",
    ),
    stack(
        "Work that nobody waits for",
        PER_SECOND,
        Query(rate("lazyfx_abandoned_total", by="stage, outcome"), "{{stage}} {{outcome}}"),
    ),
    stack(
        "Work shared by servers",
        PER_SECOND,
        Query(rate("lazyfx_fleet_flights_total", by="outcome"), "{{outcome}}"),
        explanation="Results that servers on one store needed. Joined: another server made it.",
    ),
    curves(
        "Versions",
        COUNT,
        Query(
            f"count by (version, torch, python) ({selected('lazyfx_build_info')})",
            "lazyfx {{version}}, torch {{torch}}, Python {{python}}",
        ),
    ),
)

REQUESTS_ROW = (
    stack("Rate by method", PER_SECOND, Query(rate(REQUESTS, by="method"), "{{method}}")),
    stack("Rate by status", PER_SECOND, Query(rate(REQUESTS, by="code"), "{{code}}")),
    curves(
        "Server errors",
        RATIO,
        Query(ratio(f"({rate(REQUESTS, FAILED)} or vector(0))", rate(REQUESTS)), "of all requests"),
    ),
    curves("Latency", SECONDS, *quantiles(LATENCY)),
    curves(
        "Latency by method, p50", SECONDS, Query(quantile(0.5, LATENCY, by="method"), "{{method}}")
    ),
    curves(
        "Latency by method, p95", SECONDS, Query(quantile(0.95, LATENCY, by="method"), "{{method}}")
    ),
)

GPUS_ROW = (
    number("Devices", COUNT, f"count({selected(DEVICE_TOTAL)}) or vector(0)"),
    curves(
        "Memory used",
        BYTES,
        Query(f"{selected(DEVICE_TOTAL)} - {selected(DEVICE_FREE)}", "{{instance}} {{device}}"),
    ),
    curves(
        "Memory free",
        RATIO,
        Query(ratio(selected(DEVICE_FREE), selected(DEVICE_TOTAL)), "{{instance}} {{device}}"),
    ),
)


def build() -> models.Dashboard:
    """The whole dashboard."""
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    instance = (
        dashboard.QueryVariable("instance")
        .label("Instance")
        .query("label_values(lazyfx_build_info, instance)")
        .datasource(SOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )
    board = dashboard.Dashboard("lazyfx savings").uid("lazyfx-savings").tags(["lazyfx"])
    board.description("What lazyfx saved, what it spent, and how it is doing.")
    board.refresh("30s").time("now-6h", "now").timezone("browser")
    board.tooltip(models.DashboardCursorSync.CROSSHAIR)
    board.with_variable(source).with_variable(instance)
    add_rows(
        board,
        {
            "Saved": SAVED_ROW,
            "Cache": CACHE_ROW,
            "Passes": PASSES_ROW,
            "Rendering": RENDERING_ROW,
            "Store": STORE_ROW,
            "Upstream": UPSTREAM_ROW,
            "Workers": WORKERS_ROW,
            "Requests": REQUESTS_ROW,
            "GPUs": GPUS_ROW,
        },
    )
    return board.build()


def main(arguments: Sequence[str]) -> int:
    """Write the dashboard, or with --check say whether the committed one is current."""
    text = JSONEncoder(sort_keys=True, indent=2).encode(build()) + "\n"
    if "--check" not in arguments:
        OUTPUT.write_text(text)
    elif OUTPUT.read_text() != text:
        sys.stderr.write(f"{OUTPUT} is stale: run python {__file__}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

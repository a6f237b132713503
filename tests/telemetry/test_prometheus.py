"""Events in, samples out; and every metric documented."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from lazyfx_server import telemetry
from lazyfx_server.metric_labels import label_values
from lazyfx_server.telemetry import (
    ArtifactServed,
    CompileFinished,
    DeviceMemory,
    EntryCorrupt,
    Event,
    FleetFlightEnded,
    FlightAbandoned,
    Gauges,
    GraphRefused,
    JobRetried,
    JobStarted,
    KernelProvided,
    LookupMade,
    NativeCompiled,
    Observers,
    OverheadSpent,
    PassFinished,
    RecompilesPerformed,
    RequestHandled,
    Reused,
    SourceRefused,
    StoreFailed,
    StoreSkipped,
    UpstreamAsked,
    UpstreamTransferred,
    WorkerRestarted,
    WorkRefused,
)
from lazyfx_server.telemetry.prometheus import PrometheusObserver, export_levels, exposition

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
PASSES = ("constant_fold", "dead_code_elimination")
VERSIONS = {"version": "0.1.0", "torch": "2.13.0", "python": "3.11.7"}
Sample = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Levels:
    entries: int = 3
    bytes: int = 1000
    limit_bytes: int = 5000
    evictions: int = 7


EVENTS: list[Event] = [
    LookupMade("hit"),
    LookupMade("joined"),
    LookupMade("miss", "MISS_REASON_NEW_GRAPH"),
    LookupMade("miss", "evicted"),
    Reused(2.0),
    CompileFinished(
        seconds=1.0,
        pass_seconds=0.7,
        codec_seconds=0.1,
        queue_seconds=0.25,
        overhead_seconds=0.5,
        saved_seconds=0.4,
        passes=(
            PassFinished("constant_fold", 0.5, requested=5, performed=1),
            PassFinished("dead_code_elimination", 0.2, requested=2),
        ),
        pipeline_requested=3,
        performed=(("constant_fold", "call", 1), ("", "code", 1)),
    ),
    RecompilesPerformed("", "pickle", 2, 0.1),
    OverheadSpent("key", 0.125),
    OverheadSpent("key", 0.5),
    ArtifactServed("code", "rendered", 100, 0.05),
    ArtifactServed("code", "cached", 100, 0.05),
    SourceRefused("render"),
    NativeCompiled("made"),
    KernelProvided("compiled", 1.5),
    KernelProvided("found", saved_seconds=2.5),
    JobStarted("pass", "interactive", 0.2),
    WorkRefused("native", "deadline"),
    FleetFlightEnded("compile", "joined"),
    FlightAbandoned("compile", "stopped"),
    JobRetried("render"),
    GraphRefused("native"),
    StoreFailed("disk", "put"),
    StoreSkipped("redis", "get"),
    EntryCorrupt("disk"),
    WorkerRestarted("crash"),
    RequestHandled("Compile", "OK", (0.01,)),
    UpstreamAsked("artifact", "answered"),
    UpstreamTransferred(100, 2000),
]


def observer(registry: CollectorRegistry, gauges: Gauges | None = None) -> PrometheusObserver:
    given = label_values(PASSES)
    gauges = gauges or Gauges(
        store=lambda: {"memory": Levels(), "disk": Levels(bytes=4000)},
        stores_in_use=lambda: {"redis": True, "s3": False},
        engine=lambda: {"connected": 1, "nodes": 2, "refused": 1},
        in_flight=lambda: {"compile": 2},
        backlog=lambda: {"pass": 1.5, "native": 60.0},
        memory_used=lambda: 0.25,
        refusing=lambda: True,
        workers=lambda: 4,
        upstream_in_use=lambda: True,
        devices=lambda: [DeviceMemory("cuda:0", 80_000, 60_000)],
    )
    export_levels(registry, gauges, given)
    return PrometheusObserver(registry, given, VERSIONS)


def samples(registry: CollectorRegistry) -> dict[Sample, float]:
    _, text = exposition(registry)("")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(text.decode())
        for sample in family.samples
    }


def value(found: Mapping[Sample, float], name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_recompiles_are_counted_by_pass_and_trigger(registry: CollectorRegistry) -> None:
    watching = observer(registry)
    for event in EVENTS:
        watching.observe(event)
    found = samples(registry)
    requested, performed, saved = (
        f"lazyfx_recompiles_{what}_total" for what in ("requested", "performed", "saved")
    )
    assert value(found, requested, **{"pass": "constant_fold"}) == 5
    assert value(found, requested, **{"pass": "pipeline"}) == 3
    assert value(found, performed, trigger="call", **{"pass": "constant_fold"}) == 1
    assert value(found, performed, trigger="code", **{"pass": "pipeline"}) == 1
    assert value(found, performed, trigger="pickle", **{"pass": "none"}) == 2
    assert value(found, saved, **{"pass": "constant_fold"}) == 4
    assert value(found, saved, **{"pass": "dead_code_elimination"}) == 2
    assert value(found, saved, **{"pass": "pipeline"}) == 2
    assert value(found, saved, **{"pass": "none"}) == 0


def test_seconds_are_added_up(registry: CollectorRegistry) -> None:
    watching = observer(registry)
    for event in EVENTS:
        watching.observe(event)
    found = samples(registry)
    assert value(found, "lazyfx_saved_seconds_total") == 0.4
    assert value(found, "lazyfx_reused_seconds_total") == 2.0
    overhead = {
        stage: value(found, "lazyfx_overhead_seconds_total", stage=stage)
        for stage in ("codec", "key", "queue", "other")
    }
    assert overhead == pytest.approx({"codec": 0.1, "key": 0.625, "queue": 0.25, "other": 0.15})
    assert value(found, "lazyfx_compile_seconds_sum") == 1.0
    assert value(found, "lazyfx_pass_seconds_sum", **{"pass": "constant_fold"}) == 0.5
    assert value(found, "lazyfx_render_seconds_count", kind="code") == 1
    assert value(found, "lazyfx_request_seconds_count", method="Compile") == 1


def test_the_rest_is_counted(registry: CollectorRegistry) -> None:
    watching = observer(registry)
    for event in EVENTS:
        watching.observe(event)
    found = samples(registry)
    for result, count in {"hit": 1, "joined": 1, "miss": 2}.items():
        assert value(found, "lazyfx_lookups_total", result=result) == count
    assert value(found, "lazyfx_misses_total", reason="new_graph") == 1
    assert value(found, "lazyfx_misses_total", reason="evicted") == 1
    assert value(found, "lazyfx_artifacts_total", kind="code", source="cached") == 1
    assert value(found, "lazyfx_artifact_bytes_total", kind="code") == 200
    assert value(found, "lazyfx_store_errors_total", tier="disk", operation="put") == 1
    assert value(found, "lazyfx_store_corrupt_total", tier="disk") == 1
    assert value(found, "lazyfx_worker_restarts_total", reason="crash") == 1
    assert value(found, "lazyfx_requests_total", method="Compile", code="OK") == 1


def test_levels_are_read_at_each_scrape(registry: CollectorRegistry) -> None:
    workers = [4]
    observer(
        registry,
        Gauges(
            store=lambda: {"memory": Levels(), "unheard_of": Levels()},
            in_flight=lambda: {"compile": 2, "unheard_of": 9},
            backlog=lambda: {"pass": 1.5, "unheard_of": 9.0},
            workers=lambda: workers[0],
            devices=lambda: [DeviceMemory("cuda:0", 80_000, 60_000)],
        ),
    )
    found = samples(registry)
    assert value(found, "lazyfx_store_bytes", tier="memory") == 1000
    assert value(found, "lazyfx_store_entries", tier="memory") == 3
    assert value(found, "lazyfx_store_limit_bytes", tier="memory") == 5000
    assert value(found, "lazyfx_store_evictions_total", tier="memory") == 7
    assert value(found, "lazyfx_in_flight", stage="compile") == 2
    assert value(found, "lazyfx_in_flight", stage="render") == 0
    assert value(found, "lazyfx_backlog_seconds", pool="pass") == 1.5
    assert value(found, "lazyfx_backlog_seconds", pool="native") == 0
    assert value(found, "lazyfx_workers") == 4
    assert value(found, "lazyfx_device_memory_total_bytes", device="cuda:0") == 80_000
    assert value(found, "lazyfx_device_memory_free_bytes", device="cuda:0") == 60_000
    assert not any("unheard_of" in dict(labels).values() for _, labels in found)
    workers[0] = 2
    assert value(samples(registry), "lazyfx_workers") == 2


def test_build_info(registry: CollectorRegistry) -> None:
    observer(registry)
    assert value(samples(registry), "lazyfx_build_info", **VERSIONS) == 1


def test_every_series_is_there_before_anything_happens(registry: CollectorRegistry) -> None:
    watching = observer(registry)
    before = {key for key in samples(registry) if key[0].startswith("lazyfx_")}
    for event in EVENTS:
        watching.observe(event)
    after = samples(registry)
    assert {key for key in after if key[0].startswith("lazyfx_")} == before


def test_labels_are_bounded(registry: CollectorRegistry) -> None:
    watching = observer(registry)
    before = set(samples(registry))
    for number in range(50):
        wild: Any = f"wild-{number}"
        for event in (
            LookupMade(wild, wild),
            LookupMade("miss", wild),
            CompileFinished(
                seconds=1.0, passes=(PassFinished(wild, 1.0, 1, 1),), performed=((wild, wild, 1),)
            ),
            RecompilesPerformed(wild, wild, 1),
            OverheadSpent(wild, 1.0),
            ArtifactServed(wild, wild, 1, 1.0),
            ArtifactServed(wild, "rendered", 1, 1.0),
            StoreFailed(wild, wild),
            StoreSkipped(wild, wild),
            EntryCorrupt(wild),
            FleetFlightEnded(wild, wild),
            FlightAbandoned(wild, wild),
            JobStarted(wild, wild, 1.0),
            WorkRefused(wild, wild),
            JobRetried(wild),
            GraphRefused(wild),
            WorkerRestarted(wild),
            RequestHandled(wild, wild, (1.0,)),
        ):
            watching.observe(event)
    found = samples(registry)
    assert set(found) == before
    assert value(found, "lazyfx_requests_total", method="other", code="other") == 50
    assert value(found, "lazyfx_misses_total", reason="other") == 50


def test_odd_numbers_never_raise(registry: CollectorRegistry) -> None:
    watching = observer(registry)
    watching.observe(Reused(-1.0))
    watching.observe(OverheadSpent("key", -1.0))
    watching.observe(CompileFinished(seconds=1.0, saved_seconds=-2.0, pipeline_requested=-1))
    assert value(samples(registry), "lazyfx_saved_seconds_total") == 0


def test_every_event_is_handled(registry: CollectorRegistry) -> None:
    assert {type(event) for event in EVENTS} == set(get_args(Event))
    assert {kind.__name__ for kind in get_args(Event)} <= set(telemetry.__all__)


def test_events_are_frozen() -> None:
    for kind in get_args(Event):
        assert kind.__dataclass_params__.frozen
        assert fields(kind)


def test_nothing_is_registered_globally() -> None:
    before = set(REGISTRY._names_to_collectors)
    observer(CollectorRegistry())
    observer(CollectorRegistry())
    assert set(REGISTRY._names_to_collectors) == before


def test_openmetrics_is_valid(registry: CollectorRegistry) -> None:
    watching = observer(registry)
    for event in EVENTS:
        watching.observe(event)
    content_type, text = exposition(registry)("application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in parse_openmetrics(text.decode())}
    assert "lazyfx_recompiles_requested" in names


def documented() -> set[str]:
    text = DOCS.read_text(encoding="utf-8")
    headings = re.findall(r"^### `([a-z_]+)`$", text, re.MULTILINE)
    rows = re.findall(r"^\| `((?:process|python)_[a-z_]+)` \|", text, re.MULTILINE)
    assert len(headings) == len(set(headings))
    return {*headings, *rows}


def exposed(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Label names by sample name; of a histogram, by its own name."""
    _, text = exposition(registry)("")
    found: dict[str, set[str]] = {}
    for family in parse_text(text.decode()):
        for sample in family.samples:
            name = family.name if family.type == "histogram" else sample.name
            found.setdefault(name, set()).update(set(sample.labels) - {"le"})
    return found


def test_every_metric_is_documented_and_every_documented_one_exists(
    registry: CollectorRegistry,
) -> None:
    observer(registry)
    assert set(exposed(registry)) == documented()


def test_documented_labels_and_types_are_the_real_ones(registry: CollectorRegistry) -> None:
    observer(registry)
    labels = exposed(registry)
    types = {
        metric.name + ("_total" if metric.type == "counter" else ""): metric.type
        for metric in registry.collect()
    }
    sections = re.split(r"^### ", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    for section in sections:
        name, body = re.match(r"`([a-z_]+)`\s+(.*)", section, re.DOTALL).groups()  # type: ignore[union-attr]
        sentence = body.split(". ")[0].split(".\n")[0].replace("\n", " ")
        listed = sentence.partition(" label")[2]
        assert set(re.findall(r"`([a-z]+)`", listed)) == labels[name], name
        kind = "gauge" if name == "lazyfx_build_info" else types[name]
        assert sentence.lower().startswith(kind), name
        assert ("seconds" in sentence) == ("seconds" in name), name
        assert ("bytes" in sentence) == ("bytes" in name), name
        assert "```promql" in body, name


def test_documented_queries_use_metrics_that_exist(registry: CollectorRegistry) -> None:
    observer(registry)
    names = {sample for sample, _ in samples(registry)}
    for query in re.findall(r"```promql\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL):
        used = set(re.findall(r"lazyfx_[a-z_]+", query))
        assert used
        assert used <= names, query


def test_documented_label_values_are_the_real_ones(registry: CollectorRegistry) -> None:
    observer(registry)
    real: dict[str, set[str]] = {}
    for _, labels in samples(registry):
        for label, found in labels:
            real.setdefault(label, set()).add(found)
    table = DOCS.read_text(encoding="utf-8").split("| label | values |")[1].split("\n\n")[0]
    for label, values in re.findall(r"^\| `([a-z]+)`[^|]*\| ([^|]*)\|", table, re.MULTILINE):
        if label in ("pass", "method", "code", "device"):
            continue  # described, not listed
        listed = set(re.findall(r"`([a-z_]+)`", values))
        assert listed <= real[label], label


def test_observers_pass_events_on_whatever_one_of_them_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def observe(self, event: Event) -> None:
            raise RuntimeError("exporter down")

    class Recording:
        def __init__(self) -> None:
            self.events: list[Event] = []

        def observe(self, event: Event) -> None:
            self.events.append(event)

    noting = Recording()
    both = Observers(Broken(), noting)
    both.observe(Reused(1.0))
    Observers().observe(Reused(1.0))
    assert noting.events == [Reused(1.0)]
    assert "an observer failed on Reused" in caplog.text

"""Metrics after a load of every kind are documented, emitted and consistent."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest
import torch
from harness import (
    CSE,
    DCE,
    artifact,
    compile_request,
    connected,
    graph_of,
    metrics,
    refused,
    total,
    wait_until,
)
from prometheus_client.parser import text_string_to_metric_families

import lazyfx
from lazyfx.v1 import compiler_pb2 as pb

_DOCS = Path(__file__).parents[2] / "docs/metrics.md"
_WITH_UPSTREAM = {"lazyfx_upstream_in_use"}
_NO_DEVICE = {"lazyfx_device_memory_total_bytes", "lazyfx_device_memory_free_bytes"}


@pytest.fixture(scope="module")
def loaded(launch_for_file, tmp_path_factory):
    """A server that has been asked for everything."""
    server = launch_for_file("--workers", "1")
    folder = tmp_path_factory.mktemp("saved")
    with lazyfx.connect(server.address) as client, connected(server.address) as stub:
        module = client.compile(graph_of(1.0), [DCE, CSE])
        module.code, module.picture(), module(torch.ones(2))
        module.save_pickle(folder / "a.pkl")
        module.save_package(folder / "a.pt")
        client.compile(graph_of(1.0), [DCE, CSE])
        client.compile(graph_of(2.0), [DCE])
        client.compile(graph_of(2.0), [CSE])
        client.compile(graph_of(2.0), [CSE], skip_cache_lookup=True)
        linear = torch.fx.symbolic_trace(torch.nn.Linear(2, 2))
        client.compile(linear, [DCE]).save_pickle(folder / "b.pkl")
        dict(client.compile_many([(graph_of(3.0), [DCE])]))
        client.passes(), client.server_info(), client.stats()
        key = stub.Compile(compile_request(graph_of(4.0), DCE)).module_key
        for kind in (pb.ARTIFACT_KIND_PICKLE, pb.ARTIFACT_KIND_PACKAGE, pb.ARTIFACT_KIND_SOURCE):
            artifact(stub, key, kind)
        refused(lambda: stub.Compile(compile_request(graph_of(5.0), "no_such_pass")))
        stub.FindMissingBlobs(pb.FindMissingBlobsRequest())
        stub.UploadBlobs(iter([]))
        list(stub.Prefetch(pb.PrefetchRequest(jobs=[bytes(32)])))
        stub.RememberJob(pb.RememberJobRequest(jobs=[bytes(32)]))
    return server


def families(server) -> dict[str, str]:
    with urllib.request.urlopen(server.metrics_url) as response:
        text = response.read().decode()
    return {
        name: family.type
        for family in text_string_to_metric_families(text)
        for name in [family.name + ("_total" if family.type == "counter" else "")]
    }


def documented() -> set[str]:
    return set(re.findall(r"^### `(lazyfx_\w+)`$", _DOCS.read_text(), re.MULTILINE))


def test_each_documented_metric_is_emitted(loaded):
    emitted = set(families(loaded))
    missing = documented() - emitted - _WITH_UPSTREAM
    if not torch.cuda.is_available():
        missing -= _NO_DEVICE
    assert not missing


def test_each_emitted_metric_is_documented(loaded):
    text = _DOCS.read_text()
    emitted = families(loaded)
    ours = {name for name in emitted if name.startswith("lazyfx_")}
    assert ours <= documented()
    for name in emitted:
        assert f"`{name}`" in text, name


def test_the_ledger_and_the_metrics_agree(loaded):
    with connected(loaded.address) as stub:
        stats = stub.GetStats(pb.GetStatsRequest())
    samples = metrics(loaded.metrics_url)

    def sum_of(name: str, **labels: str) -> float:
        return total(samples, f"lazyfx_{name}_total", **labels)

    assert stats.hits == sum_of("lookups", result="hit") > 0
    assert stats.misses == sum_of("lookups", result="miss") == sum_of("misses") > 0
    assert stats.joins == sum_of("lookups", result="joined")
    assert stats.recompiles.requested == sum_of("recompiles_requested") > 0
    assert stats.recompiles.performed == sum_of("recompiles_performed") > 0
    assert stats.saved_seconds == pytest.approx(sum_of("saved_seconds"))
    assert stats.reused_seconds == pytest.approx(sum_of("reused_seconds"))
    for miss in stats.miss_reasons:
        name = pb.MissReason.Name(miss.reason).removeprefix("MISS_REASON_").lower()
        assert miss.count == sum_of("misses", reason=name)
    for one in stats.passes:
        assert one.recompiles.requested == sum_of("recompiles_requested", **{"pass": one.name})
        assert one.runs == total(samples, "lazyfx_pass_seconds_count", **{"pass": one.name})
    assert stats.store.limit_bytes


def test_each_touch_is_counted_by_its_trigger(loaded):
    samples = metrics(loaded.metrics_url)
    for trigger in ("code", "pickle"):
        performed = total(samples, "lazyfx_recompiles_performed_total", trigger=trigger)
        assert performed > 0, trigger
    for kind in ("code", "pickle", "package", "graph", "picture", "source"):
        assert total(samples, "lazyfx_artifacts_total", kind=kind) > 0, kind
        assert total(samples, "lazyfx_artifact_bytes_total", kind=kind) > 0, kind


def test_each_method_is_counted(loaded):
    samples = metrics(loaded.metrics_url)
    for method in pb.DESCRIPTOR.services_by_name["GraphCompiler"].methods_by_name:
        assert total(samples, "lazyfx_requests_total", method=method, code="OK") > 0, method
        assert total(samples, "lazyfx_request_seconds_count", method=method) > 0, method
    wrong = {"method": "Compile", "code": "INVALID_ARGUMENT"}
    assert total(samples, "lazyfx_requests_total", **wrong) == 1


def test_nothing_is_in_flight_afterwards(loaded):
    wait_until(
        lambda: not total(metrics(loaded.metrics_url), "lazyfx_in_flight"), "nothing in flight"
    )


def test_saved_recompiles_are_requested_less_performed_inside_compiles(loaded):
    samples = metrics(loaded.metrics_url)
    inside = sum(
        value
        for (name, labels), value in samples.items()
        if name == "lazyfx_recompiles_performed_total" and ("pass", "none") not in labels
    )
    requested = total(samples, "lazyfx_recompiles_requested_total")
    assert total(samples, "lazyfx_recompiles_saved_total") == requested - inside


def test_store_gauges_agree_with_the_ledger(loaded):
    with connected(loaded.address) as stub:
        store = stub.GetStats(pb.GetStatsRequest()).store
    samples = metrics(loaded.metrics_url)
    assert store.bytes == total(samples, "lazyfx_store_bytes", tier="disk")
    assert store.entries == total(samples, "lazyfx_store_entries", tier="disk")

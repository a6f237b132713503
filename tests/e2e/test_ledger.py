"""A known workload has the same counts in reports, GetStats, `lazyfx stats` and /metrics."""

from __future__ import annotations

import json
from pathlib import Path

import nursery
import pytest
import torch
from harness import CSE, DCE, compile_request, connected, graph_of, metrics, total, wait_until
from torch.fx import symbolic_trace

import lazyfx
from lazyfx.v1 import compiler_pb2 as pb

TWICE = lazyfx.replace_pattern((lambda x: torch.relu(torch.relu(x)), lambda x: torch.relu(x)))


def cli_stats(address: str) -> dict[str, object]:
    command = ["-m", "lazyfx.cli", "stats", "--address", address, "--json"]
    out = nursery.run("torch", command, check=True)
    found = json.loads(out.stdout)
    assert isinstance(found, dict)
    return found


def workload(address: str, folder: Path) -> list[lazyfx.RemoteModule]:
    """Three misses, two hits, and touches of every kind."""
    with lazyfx.connect(address) as client:
        first = client.compile(graph_of(1.0), [DCE, CSE])
        client.compile(graph_of(1.0), [DCE, CSE])
        first.code, first.code, first.picture()
        first.save_pickle(folder / "a.pkl")
        first.save_torchscript(folder / "a.ts")
        second = client.compile(graph_of(2.0, argument="other"), [CSE])
        renamed = client.compile(graph_of(2.0, argument="renamed"), [CSE])
        assert ("renamed" in renamed.code, "other" in second.code) == (True, True)
        nested = symbolic_trace(lambda x: torch.relu(torch.relu(x)) + 1)
        third = client.compile(nested, [TWICE, lazyfx.until_stable(DCE, CSE)])
        return [
            client.compile(graph_of(1.0), [DCE, CSE]),
            client.compile(graph_of(2.0), [CSE]),
            third,
        ]


@pytest.fixture(scope="module")
def counted(launch_for_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ledger")
    server = launch_for_file("--workers", "1", store=folder / "store")
    return server, workload(server.address, folder), folder


def stats_of(address: str) -> pb.GetStatsResponse:
    with connected(address) as stub:
        return stub.GetStats(pb.GetStatsRequest())


def agree(address: str, metrics_url: str) -> pb.GetStatsResponse:
    """GetStats, `lazyfx stats` and /metrics show the same counts."""
    stats, shown, samples = stats_of(address), cli_stats(address), metrics(metrics_url)

    def metric(name: str, **labels: str) -> float:
        return total(samples, f"lazyfx_{name}_total", **labels)

    assert stats.recompiles.requested == metric("recompiles_requested")
    assert stats.recompiles.performed == metric("recompiles_performed")
    assert (stats.hits, stats.misses) == (
        metric("lookups", result="hit"), metric("lookups", result="miss"),
    )  # fmt: skip
    for name in ("saved", "saved_seconds_measured", "performed", "reused", "overhead"):
        value = getattr(stats, name if "measured" in name else f"{name}_seconds")
        exported = metric(name if "measured" in name else f"{name}_seconds")
        assert value == pytest.approx(exported, abs=1e-9), name
    for row in stats.passes:
        assert row.recompiles.requested == metric("recompiles_requested", **{"pass": row.name})
        assert row.recompiles.performed == metric("recompiles_performed", **{"pass": row.name})
    assert stats.net_seconds == pytest.approx(
        stats.saved_seconds + stats.reused_seconds - stats.overhead_seconds
    )
    assert shown["recompiles"]["requested"] == stats.recompiles.requested
    assert shown["recompiles"]["performed"] == stats.recompiles.performed
    assert (shown["hits"], shown["misses"]) == (stats.hits, stats.misses)
    assert shown["net_seconds"] == pytest.approx(stats.net_seconds)
    (tenant,) = stats.tenants
    assert tenant.tenant == "open"
    assert (tenant.hits, tenant.misses, tenant.joins) == (stats.hits, stats.misses, stats.joins)
    assert tenant.recompiles == stats.recompiles
    assert tenant.saved_seconds == pytest.approx(stats.saved_seconds)
    return stats


def test_all_four_agree_with_what_was_done(counted):
    server, modules, _ = counted
    stats = agree(server.address, server.metrics_url)
    reports = [module.report for module in modules]
    # dead code, then a merge; a merge; one match, of which nothing is left to clean.
    assert [r.recompiles.requested for r in reports] == [2, 1, reports[2].recompiles.requested]
    assert sum(r.recompiles.requested for r in reports) == stats.recompiles.requested
    # Code is generated there; a picture needs none; pickles and TorchScript are made by the client.
    # The second graph is shown to two callers in their own names.
    assert [r.recompiles.performed for r in reports] == [1, 2, 0]
    assert sum(r.recompiles.performed for r in reports) == stats.recompiles.performed == 3
    assert (stats.misses, stats.hits) == (3, 4)
    assert sum(r.saved_seconds for r in reports) == pytest.approx(stats.saved_seconds)
    assert sum(r.performed_seconds for r in reports) == pytest.approx(stats.performed_seconds)
    for report in reports:
        by_pass = sum(row.recompiles.requested for row in report.passes)
        by_module = sum(row.recompiles.requested for row in report.modules)
        assert by_pass == by_module == report.recompiles.requested
    runs = {row.name: row.runs for row in stats.passes}
    assert runs[CSE] == 2 + {r.name: r.runs for r in reports[2].passes}[CSE]


def test_a_graph_that_was_rendered_is_estimated_by_its_own_cost(counted):
    server, _, _ = counted
    long = symbolic_trace(_chain)
    with lazyfx.connect(server.address) as client:
        before = client.compile(long, [CSE])
        assert before.report.saved_basis == "fitted"
        assert "relu" in before.code
        again = client.compile(long, [CSE], skip_cache_lookup=True)
    assert again.report.saved_basis == "measured"
    stats = agree(server.address, server.metrics_url)
    assert stats.saved_seconds_measured == pytest.approx(again.report.saved_seconds)
    assert 0 < stats.saved_seconds_measured < stats.saved_seconds


def _chain(x):  # type: ignore[no-untyped-def]
    for i in range(100):
        x = x + torch.relu(x) + torch.relu(x) + i
    return x


def test_the_ledger_survives_a_restart(counted, launch_for_file):
    server, _, folder = counted
    before = agree(server.address, server.metrics_url)
    assert server.stop() == 0
    again = launch_for_file("--workers", "1", store=folder / "store")
    after = agree(again.address, again.metrics_url)
    assert (before.starts, after.starts) == (1, 2)
    assert after.since == before.since
    for name in ("recompiles", "hits", "misses", "passes", "miss_reasons", "tenants"):
        assert getattr(after, name) == getattr(before, name), name
    with connected(again.address) as stub:
        stub.Compile(compile_request(graph_of(77.0), DCE))
    grown = agree(again.address, again.metrics_url)
    assert grown.misses == before.misses + 1


def test_a_killed_server_forgets_seconds_not_days(launch, tmp_path):
    server = launch(store=tmp_path / "store")
    with connected(server.address) as stub:
        stub.Compile(compile_request(graph_of(5.0), DCE))
    file = tmp_path / "store/.ledger/counts.json"
    wait_until(lambda: file.is_file() and '"lookups","miss"' in file.read_text(), "ledger written")
    server.process.kill()
    server.process.wait()
    again = launch(store=tmp_path / "store")
    assert stats_of(again.address).misses == 1


def test_a_damaged_ledger_starts_over(launch, tmp_path):
    folder = tmp_path / "store/.ledger"
    folder.mkdir(parents=True)
    (folder / "counts.json").write_text("{]")
    server = launch(store=tmp_path / "store")
    assert stats_of(server.address).starts == 1
    assert any("counts start from zero" in line for line in server.log)

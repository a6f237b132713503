"""A job that reaches its server by a name, in the clear: first it has to trust the server's key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness import metrics, total
from training.counting import native_compiles
from training.test_ranks import expected_losses, run_job
from typer.testing import CliRunner

import lazyfx
from lazyfx.cli.application import app


@pytest.fixture(autouse=True)
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "known_servers"
    monkeypatch.setenv("LAZYFX_KNOWN_SERVERS", str(path))
    return path


def _by_name(server: Any, named_host: str) -> str:
    return f"{named_host}:{server.address.rpartition(':')[2]}"


def _work(server: Any) -> tuple[float, float]:
    """Graphs that were asked for, and native compiles."""
    samples = metrics(server.metrics_url)
    return total(samples, "lazyfx_requests_total", method="Compile"), native_compiles(server)


def test_ranks_get_the_remedy_before_anything_is_compiled_and_then_it_works(
    native_server: Any, named_host: str, tmp_path: Path
) -> None:
    address = _by_name(native_server, named_host)
    before = _work(native_server)
    refused = run_job(tmp_path / "refused", address, width=52)
    assert [rank["outcomes"] for rank in refused] == [["eager"], ["eager"]]
    for rank in refused:
        (reason,) = rank["reasons"]
        assert "plaintext connection does not authenticate" in reason
        assert f"`lazyfx trust {address}`" in reason
    assert _work(native_server) == before

    trusted = CliRunner().invoke(app, ["trust", address, "--yes"])
    assert trusted.exit_code == 0, trusted.output
    remote = run_job(tmp_path / "remote", address, width=52, agreement="all")
    assert [rank["outcomes"] for rank in remote] == [["remote"], ["remote"]]
    assert _work(native_server)[1] == before[1] + 1
    assert remote[0]["losses"] == pytest.approx(expected_losses(width=52))


def test_it_is_said_once_for_a_model_of_many_graphs(native_server: Any, named_host: str) -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        x = net(x)
        torch._dynamo.graph_break()
        return net(x).relu()

    net = torch.nn.Linear(4, 4)
    before = _work(native_server)
    options = {"address": _by_name(native_server, named_host), "on_error": "eager"}
    with pytest.warns(lazyfx.FallbackWarning, match="lazyfx trust") as caught:
        torch.compile(broken, backend="lazyfx", options=options)(torch.ones(2, 4))
    assert len([w for w in caught if w.category is lazyfx.FallbackWarning]) == 1
    report = lazyfx.backend_report()
    assert len(report.graphs) >= 2
    assert {graph.outcome for graph in report.graphs} == {"eager"}
    assert _work(native_server) == before

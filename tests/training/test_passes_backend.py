"""backend="lazyfx" with graph passes: what comes back computes and learns the same."""

from __future__ import annotations

from typing import Any

import models
import nursery
import pytest
import torch
from torch import nn
from training.loops import Net, assert_same, batches, train

import lazyfx
from lazyfx.backend import BackendOptions
from lazyfx.backend.options import read_options

PASSES = ["dead_code_elimination", "common_subexpression_elimination"]


def options(server: Any, **more: object) -> dict[str, object]:
    return {"address": server.address, "passes": PASSES, "compile": "eager", **more}


def test_a_training_loop_learns_the_same(server: Any) -> None:
    model = Net()
    compiled = torch.compile(model, backend="lazyfx", options=options(server))
    remote = train(model, batches(), compiled)
    assert_same(remote, train(Net(), batches()))
    report = lazyfx.backend_report()
    assert report.remote == len(report.graphs) == 1
    assert not report.fallbacks


def test_inference_of_a_real_model(server: Any) -> None:
    model, example = models.gpt2()
    compiled = torch.compile(model, backend="lazyfx", options=options(server))
    with torch.no_grad():
        torch.testing.assert_close(compiled(**example).logits, model(**example).logits)
    assert lazyfx.backend_report().remote > 0
    assert not lazyfx.backend_report().fallbacks


def test_sizes_that_change_reuse_one_dynamic_graph(server: Any) -> None:
    model = Net()
    compiled = torch.compile(model, backend="lazyfx", dynamic=True, options=options(server))
    sizes = (6, 9, 12, 15)
    assert_same(train(model, batches(sizes), compiled), train(Net(), batches(sizes)))
    assert lazyfx.backend_report().remote == len(lazyfx.backend_report().graphs) == 1


class Broken(nn.Module):
    """Two graphs with Python in between that dynamo cannot capture."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x)
        torch._dynamo.graph_break()
        return y * 2 + y.mean()


def test_a_graph_break_makes_two_graphs(server: Any) -> None:
    model = Broken()
    compiled = torch.compile(model, backend="lazyfx", options=options(server))
    assert_same(train(model, batches(), compiled), train(Broken(), batches()))
    assert lazyfx.backend_report().remote == 2


def test_the_second_process_hits(server: Any) -> None:
    for _ in range(2):
        torch._dynamo.reset()
        torch.compile(Net().eval(), backend="lazyfx", options=options(server))(batches()[0])
    assert lazyfx.backend_report().graphs[-1].cache == "hit"


def test_without_a_server_the_job_trains_on() -> None:
    model = Net()
    absent = {"address": "127.0.0.1:1", "passes": PASSES, "compile": "eager"}
    compiled = torch.compile(model, backend="lazyfx", options=absent)
    with pytest.warns(lazyfx.FallbackWarning, match=r"127\.0\.0\.1:1 could not help") as caught:
        done = train(model, batches(), compiled)
    assert len([w for w in caught if w.category is lazyfx.FallbackWarning]) == 1
    assert_same(done, train(Net(), batches()))
    report = lazyfx.backend_report()
    assert report.fallbacks == {"UNAVAILABLE": 1}
    assert report.graphs[0].outcome == "eager"
    assert "UNAVAILABLE" in report.graphs[0].reason
    assert "1: " in str(report)


def test_on_error_raise_raises() -> None:
    absent = {"address": "127.0.0.1:1", "compile": "eager", "on_error": "raise"}
    with pytest.raises(Exception, match="UNAVAILABLE"):
        torch.compile(Net(), backend="lazyfx", options=absent)(batches()[0])


def test_an_unknown_pass_is_reported_by_its_name(server: Any) -> None:
    compiled = torch.compile(
        Net(), backend="lazyfx", options=options(server, passes=["no_such_pass"])
    )
    with pytest.warns(lazyfx.FallbackWarning, match="no_such_pass"):
        compiled(batches()[0])
    assert lazyfx.backend_report().fallbacks == {"INVALID_ARGUMENT": 1}


def test_options_come_from_the_environment(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYFX_ADDRESS", server.address)
    monkeypatch.setenv("LAZYFX_PASSES", ",".join(PASSES))
    monkeypatch.setenv("LAZYFX_COMPILE", "eager")
    torch.compile(Net(), backend="lazyfx")(batches()[0])
    assert lazyfx.backend_report().remote == 1


def test_what_is_written_in_the_call_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAZYFX_TIMEOUT", "7")
    monkeypatch.setenv("LAZYFX_WAIT", "no")
    monkeypatch.delenv("LAZYFX_PREFETCH")
    read = read_options({"timeout": 9, "max-autotune": True}, "default")
    assert read == BackendOptions(timeout=9.0, wait=False, inductor={"max_autotune": True})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("on_error", "ignore"),
        ("compile", "triton"),
        ("agreement", "some"),
        ("timeout", 0),
        ("timeout", "soon"),
        ("address", "8700"),
        ("wait", "maybe"),
        ("passes", [3]),
    ],
)
def test_a_wrong_option_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        read_options({name: value})


def test_dynamo_lists_the_backend() -> None:
    program = "import torch; print('lazyfx' in torch._dynamo.list_backends())"
    run = nursery.run("inductor", ["-c", program], check=True)
    assert run.stdout.strip() == "True"

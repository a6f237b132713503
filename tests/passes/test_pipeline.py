"""The driver: order, reports, laziness, errors that say where."""

import pytest
import torch
from passes.sample_passes import Failing, Plain, Recompiling, traced
from torch import nn
from torch.fx import GraphModule

from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import (
    PassError,
    PassLimits,
    Pipeline,
    Registry,
)


def test_each_pass_is_reported() -> None:
    registry, ledger = Registry(), RecompileLedger()
    cse, dce = (
        registry.create(n) for n in ("common_subexpression_elimination", "dead_code_elimination")
    )
    outcome = Pipeline((cse, dce, Recompiling(times=3))).run(traced(), ledger)
    rows = [
        (
            r.name,
            r.spelling,
            r.nodes_before,
            r.nodes_after,
            r.changed,
            r.requested,
            r.performed,
            r.saved,
            r.note,
        )
        for r in outcome.runs
    ]
    assert rows == [
        (cse.name, cse.name, 5, 4, True, 1, 0, 1, "1 nodes merged"),
        (dce.name, dce.name, 4, 4, False, 0, 0, 0, ""),
        ("recompiling", "recompiling{times=3}", 4, 4, False, 3, 0, 3, "asked"),
    ]
    assert [ledger.requested(name) for name in (cse.name, dce.name, "recompiling")] == [1, 0, 3]
    assert all(run.seconds >= 0 for run in outcome.runs)
    x = torch.randn(2)
    torch.testing.assert_close(outcome.module(x), torch.relu(x) * 2)


def test_a_call_in_a_pass_is_one_recompile_of_that_pass() -> None:
    ledger = RecompileLedger()
    Pipeline((Recompiling(), Recompiling(call=True), Recompiling())).run(traced(), ledger)
    assert [(e.scope, e.trigger) for e in ledger.events] == [("recompiling", "call")]
    assert (ledger.requested(), ledger.performed()) == (3, 1)


def test_what_a_pass_returns_is_lazy_again() -> None:
    ledger = RecompileLedger()
    outcome = Pipeline((Plain(), Recompiling(times=2))).run(traced(), ledger)
    assert ledger.performed() == 0
    assert len(outcome.module.graph.nodes) == 4
    assert [run.requested for run in outcome.runs] == [1, 2]


def test_the_module_stays_lazy_after_the_job() -> None:
    ledger = RecompileLedger()
    module = Pipeline(()).run(traced(), ledger).module
    module.recompile()
    assert ledger.performed() == 0
    assert "relu" in module.code
    assert ledger.performed() == 1


def test_spelling_and_fingerprint() -> None:
    pipeline = Pipeline((Recompiling(times=2), Plain()))
    assert pipeline.spelling == "recompiling{times=2},plain"
    same = Pipeline((Recompiling(times=2), Plain()))
    digests = ((b"p" * 32, b"r" * 32),)
    others = [
        Pipeline(()),
        Pipeline((Plain(), Recompiling(times=2))),
        Pipeline((Recompiling(times=3), Plain())),
        Pipeline((Recompiling(times=2), Plain()), {0: digests}),
        Pipeline((Recompiling(times=2), Plain()), {1: digests}),
    ]
    assert pipeline.fingerprint == same.fingerprint
    prints = {pipeline.fingerprint, *(p.fingerprint for p in others)}
    assert len(prints) == 6
    assert all(len(p) == 32 for p in prints)


def test_a_new_version_is_a_new_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Pipeline((Plain(),)).fingerprint
    monkeypatch.setattr(Plain, "version", 2)
    assert Pipeline((Plain(),)).fingerprint != before


def test_errors_name_the_pass_its_place_and_the_node() -> None:
    ledger = RecompileLedger()
    with pytest.raises(PassError, match="KeyError") as caught:
        Pipeline((Plain(), Recompiling(), Failing())).run(traced(), ledger)
    error = caught.value
    assert (error.field, error.pass_name, error.kind) == ("passes[2]", "failing", "internal")
    assert error.before == ("plain", "recompiling")
    assert error.node == "relu"
    assert ledger.scope == "pipeline"
    with pytest.raises(PassError, match="cannot") as caught:
        Pipeline((Failing(own=True),)).run(traced(), ledger)
    error = caught.value
    assert (error.field, error.kind, error.node) == ("passes[0].options.own", "invalid", "relu")


def test_a_graph_that_grows_past_the_limit_is_refused() -> None:
    with pytest.raises(PassError, match=r"the limit is 3 \(setting max_nodes\)") as caught:
        Pipeline((Recompiling(),)).run(traced(), RecompileLedger(), PassLimits(max_nodes=3))
    assert caught.value.kind == "limit"
    assert caught.value.field == "passes[0]"


def test_a_failed_job_leaves_the_process_as_it_was() -> None:
    before = GraphModule.__dict__["__new__"]
    with pytest.raises(PassError):
        Pipeline((Failing(),)).run(traced(), RecompileLedger())
    assert GraphModule.__dict__["__new__"] is before
    Pipeline((Plain(),)).run(traced(), RecompileLedger())


def test_values_read_are_those_of_every_pass_that_needs_some() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.register_buffer("table", torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x)) + self.table.exp().sum()

    program = torch.export.export(Model().eval(), (torch.randn(1, 3, 8, 8),))
    module = program.module(check_guards=False).to("meta")
    registry = Registry()
    assert Pipeline((registry.create("dead_code_elimination"),)).values_read(module) == frozenset()
    both = Pipeline((registry.create("fuse_conv_bn"), registry.create("constant_fold")))
    assert both.values_read(module) == {
        "conv.weight",
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "table",
    }

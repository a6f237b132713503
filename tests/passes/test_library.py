"""The pass library over captures: same results, no code generated, clear without shapes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from passes.captures import aot, dynamo, exported, total_of
from passes.library import LIBRARY
from passes.running import outputs, run
from torch import nn
from torch.fx import GraphModule, symbolic_trace
from torch.utils._pytree import tree_leaves
from wire.captures import Capture

from lazyfx.shared import wire
from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import Pass, Pipeline

# What changes precision on purpose, and by how much of the largest value.
_LOOSE = {"convert_dtype": 0.05, "quantize_weights": 0.02}


def assert_close(found: list[Any], expected: list[Any], pass_: Pass) -> None:
    assert len(found) == len(expected)
    loose = _LOOSE.get(pass_.name)
    for one, other in zip(found, expected, strict=True):
        if not isinstance(other, torch.Tensor):
            assert one == other or one is other
            continue
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if loose is None:
            torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)
        elif other.is_floating_point():  # indices of a maximum may move with the precision
            finite = other.isfinite()
            assert torch.equal(finite, one.isfinite())
            scale = max(1.0, float(other[finite].abs().max()))
            assert float((one[finite] - other[finite]).abs().max()) <= loose * scale


@pytest.fixture(
    params=["gpt2-export", "gpt2-dynamo", "gpt2-forward", "gpt2-backward", "bert-export",
            "bert-dynamo", "resnet-symbolic", "resnet-dynamo"]
)  # fmt: skip
def real(request: pytest.FixtureRequest, captured: dict[str, Capture]) -> Capture:
    return captured[request.param]


def test_real_models_compute_what_they_did(real: Capture) -> None:
    expected = outputs(real.module, real.args, real.kwargs)
    worked = []
    for pass_ in LIBRARY.values():
        ran = run(real.module, pass_)
        assert ran.ledger.performed() == 0
        wire.encode(ran.module)
        if ran.changed:
            worked.append(pass_.name)
            assert_close(outputs(ran.module, real.args, real.kwargs), expected, pass_)
        else:
            assert ran.ledger.requested() <= 1
    assert "split_module" in worked
    assert len(worked) >= (3 if "symbolic" in real.label else 5)


class Layers(nn.Module):
    """Everything that passes trip over: statistics, draws, writes, casts, attention, views."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.out, self.bn = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        h = torch.relu_(self.norm(self.conv(x)))
        h = torch.nn.functional.dropout(h, 0.3, self.training).mean(1) + 0.0
        q, k, v = self.q(h), self.k(h), self.v(h)
        mask = torch.zeros(8, 8)
        mask[0, 1] = -1.0
        weights = torch.softmax(q @ k.transpose(-2, -1) * 0.5 + mask, dim=-1)
        h = (weights @ v).to(torch.float64).to(torch.float32)
        h = torch.sigmoid(h.transpose(0, 1)).tanh().transpose(0, 1).reshape(-1, 8) * 1
        # Spread out again, so that the normalization does not blow rounding up.
        return self.bn(self.out(h) + x[:, 0].reshape(-1, 8))


def make(training: bool) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(3)
    return Layers().train(training), {"x": torch.randn(2, 2, 8, 8)}


def transformed(module: GraphModule, pass_: Pass) -> tuple[GraphModule, bool, str]:
    ledger = RecompileLedger()
    outcome = Pipeline((pass_,)).run(copy.deepcopy(module), ledger)
    assert ledger.performed() == 0
    outcome.module.graph.lint()
    return outcome.module, outcome.runs[0].changed, outcome.runs[0].note


def step(module: GraphModule, inputs: list[Any]) -> list[Any]:
    """Results, gradients and what is in the inputs and attributes after a training step."""

    def own(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().clone().requires_grad_(value.requires_grad)

    given = [own(value) for value in inputs]
    torch.manual_seed(11)
    results = module(*given)
    total = total_of(results)
    if total.requires_grad:
        total.backward()
    tensors = [value for value in given if isinstance(value, torch.Tensor)]
    return [*tree_leaves(results), *[t.grad for t in tensors], *[t.detach() for t in tensors]]


TRAINABLE = [name for name in LIBRARY if name != "quantize_weights"]


@pytest.fixture(scope="module")
def training() -> dict[str, tuple[GraphModule, list[Any]]]:
    model, example = make(training=True)
    found = {"dynamo": dynamo(model, example)}
    found["forward"], found["backward"] = aot(*make(training=True))
    return found


@pytest.mark.parametrize("kind", ["dynamo", "forward", "backward"])
@pytest.mark.parametrize("name", TRAINABLE)
def test_a_training_step(
    training: dict[str, tuple[GraphModule, list[Any]]], kind: str, name: str
) -> None:
    module, inputs = training[kind]
    changed, _, _ = transformed(module, LIBRARY[name])
    assert_close(step(changed, inputs), step(module, inputs), LIBRARY[name])


@pytest.mark.parametrize("name", TRAINABLE)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_buffers_of_an_exported_graph(name: str, mode: str) -> None:
    model, example = make(mode == "train")
    module, _ = exported(model, example)
    changed, _, _ = transformed(module, LIBRARY[name])
    x = torch.randn(2, 2, 8, 8)
    results = []
    for graph in (module, changed):
        torch.manual_seed(5)
        with torch.no_grad():
            results.append([graph(x=x.clone()), graph(x=x.clone())])
    assert_close(results[1], results[0], LIBRARY[name])
    before = {k.rpartition(".")[2]: v for k, v in module.named_buffers()}
    after = {k.rpartition(".")[2]: v for k, v in changed.named_buffers()}
    assert before["calls"].item() == 2
    assert after.keys() >= before.keys() - {"num_batches_tracked"}, "that one may be unused"
    for key in after.keys() & before.keys():
        torch.testing.assert_close(after[key], before[key], rtol=1e-2, atol=1e-2)


WORKS = {
    "fuse_attention": "1 attentions fused",
    "merge_matmul": "3 products merged",
    "remove_duplicate_casts": "1 casts skipped",
    "sink_views": "views moved or merged",
    "no_op_elimination": "no-ops removed",
    "quantize_weights": "4 layers, 4 weights in int8",
    "convert_dtype": "calls converted",
}


@pytest.mark.parametrize("name", WORKS)
def test_each_finds_its_work(name: str) -> None:
    model, example = make(training=False)
    module, _ = exported(model, example)
    changed, done, note = transformed(module, LIBRARY[name])
    assert done, note
    assert WORKS[name] in note
    x = torch.randn(2, 2, 8, 8)
    with torch.no_grad():
        assert_close([changed(x=x)], [module(x=x)], LIBRARY[name])


def test_a_linear_layer_and_its_normalization_become_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False),
                          nn.BatchNorm1d(4)).eval()  # fmt: skip
    model[1].running_mean.normal_()
    model[3].running_var.uniform_(0.5, 2.0)
    x = torch.randn(5, 3)
    module, _ = exported(model, {"input": x})
    changed, done, note = transformed(module, LIBRARY["fuse_linear_bn"])
    assert (done, note) == (True, "2 pairs fused")
    torch.testing.assert_close(changed(input=x), model(x))
    deep = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    module, _ = exported(deep, {"input": torch.randn(2, 3, 3)})
    assert not transformed(module, LIBRARY["fuse_linear_bn"])[1], "its channels are not the outputs"


@pytest.mark.parametrize("name", [n for n, p in LIBRARY.items() if p.needs_shapes])
def test_without_shapes_a_pass_says_so(name: str) -> None:
    module = symbolic_trace(make(training=False)[0])
    changed, done, note = transformed(module, LIBRARY[name])
    assert not done
    if name != "fuse_linear_bn":
        assert "shape" in note
    assert [str(n) for n in changed.graph.nodes] == [str(n) for n in module.graph.nodes]

"""Inductor's steps as passes: each is there in this torch, keeps results, and is taken back if not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from passes.captures import aot, dynamo, exported
from passes.running import assert_same, run
from passes.test_library import assert_close, step
from torch import nn
from torch.fx import GraphModule, symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import PassError, Pipeline, Registry
from lazyfx_server.passes.torch_steps import torch_inductor_passes
from lazyfx_server.passes.torch_steps.step_runner import TorchStep, run_steps

registry = Registry()
KINDS = ["linear", "layer_norm", "relu", "tanh", "add"]


@pytest.mark.parametrize("stage", torch_inductor_passes.STEPS)
def test_this_torch_has_every_step(stage: Any) -> None:
    assert tuple(torch_inductor_passes._steps(stage)) == torch_inductor_passes.STEPS[stage]


def test_this_torch_has_every_fusion() -> None:
    from torch._inductor.fx_passes import group_batch_fusion

    for before, after in torch_inductor_passes.BATCHED.values():
        assert before is None or before in group_batch_fusion.PRE_GRAD_FUSIONS
        assert after is None or after in group_batch_fusion.POST_GRAD_FUSIONS


def _calls(function: Callable[..., Any], given: torch.Tensor) -> GraphModule:
    class Model(nn.Module):
        def forward(self, a: torch.Tensor) -> Any:
            return function(a)

    return dynamo(Model(), {"a": given})[0]


def _aten(function: Callable[..., Any], *inputs: torch.Tensor) -> GraphModule:
    with torch.no_grad():
        return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)


_PLAIN = {
    "dtype": torch.float32,
    "layout": torch.strided,
    "device": torch.device("cpu"),
    "pin_memory": False,
}
A, B = torch.randn(4, 6), torch.randn(6, 6)
AFTER: dict[str, tuple[str, Callable[[], GraphModule]]] = {
    # step -> the pass, and a graph that it changes
    "pointless_view": ("joint_graph", lambda: _aten(lambda a: a.view(4, 6).sin(), A)),
    "pointless_view_pair": (
        "joint_graph",
        lambda: _aten(lambda a: a.view(24).view(4, 6).sin(), A),
    ),
    "pointless_permute_pair": (
        "joint_graph",
        lambda: _aten(lambda a: a.permute(1, 0).permute(1, 0).sin(), A),
    ),
    "constant_fold_uniform_value": (
        "joint_graph",
        lambda: _aten(lambda a: (a * torch.full((4, 6), 1.0)).sin(), A),
    ),
    "remove_noop_ops": ("post_grad", lambda: _aten(lambda a: a.clone().sin(), A)),
    "addmm": ("post_grad", lambda: _aten(lambda a, b: (a @ b + a).sin(), A, B)),
    "pointless_cumsum_replacement": (
        "post_grad",
        lambda: _aten(lambda a: a + torch.full((4, 6), 1.0, **_PLAIN).cumsum(1), A),
    ),
}


@pytest.mark.parametrize("name", AFTER)
def test_a_step_changes_the_graph_and_not_the_results(name: str) -> None:
    stage, make = AFTER[name]
    module = make()
    ran = run(module, registry.create(f"inductor_{stage}", {"steps": [name]}))
    assert ran.changed
    assert ran.note == name
    count = sum(node.op == "placeholder" for node in module.graph.nodes)
    assert_same(module, ran.module, *(A, B)[:count])
    assert not run(ran.module, registry.create(f"inductor_{stage}", {"steps": [name]})).changed


@pytest.mark.parametrize("way", ["parameter", "buffer"])
def test_the_number_in_a_tensor_of_the_model_is_not_put_in_its_place(way: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            scale = torch.tensor([2.0])
            if way == "parameter":
                self.scale = nn.Parameter(scale)
            else:
                self.register_buffer("scale", scale)

        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return a * self.scale.exp() * torch.ones(6)

    module, _ = exported(Scaled(), {"a": A})
    after = run(module, registry.create("inductor_joint_graph")).module
    with torch.no_grad():
        for graph in (module, after):
            graph.scale.fill_(3.0)
    torch.testing.assert_close(after(a=A), module(a=A))


def test_splits_and_concatenations_that_undo_each_other_go() -> None:
    module = _calls(lambda a: torch.cat(torch.split(a, 1)) + 1, A)
    ran = run(module, registry.create("inductor_pre_grad"))
    assert "merge_getitem_cat_pass" in ran.note
    assert torch.cat not in [node.target for node in ran.module.graph.nodes]
    assert_same(module, ran.module, A)


def test_a_concatenation_moves_behind_an_activation() -> None:
    module = _calls(lambda a: torch.relu(torch.cat([a + 1, a * 2])), A)
    ran = run(module, registry.create("inductor_pre_grad", {"steps": ["sink_cat_after_pointwise"]}))
    targets = [n.target for n in ran.module.graph.nodes if n.op == "call_function"]
    assert targets[-3:] == [torch.relu, torch.relu, torch.cat]
    assert_same(module, ran.module, A)


def test_values_are_written_over_where_nothing_is_trained() -> None:
    index, value = torch.tensor([0, 2]), torch.ones(2, 6)

    def work(a: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.index_put.default(a * 2, [index], value) + 1

    module = _aten(work, A)
    one = registry.create("inductor_post_grad", {"steps": ["reinplace_inplaceable_ops"]})
    ran = run(module, one)
    assert ran.note == "reinplace_inplaceable_ops"
    assert torch.ops.aten.index_put_.default in [node.target for node in ran.module.graph.nodes]
    assert_same(module, ran.module, A)
    module.weight = nn.Parameter(torch.ones(1))
    ran = run(module, one)
    assert not ran.changed
    assert "requires grad" in ran.note


class Many(nn.Module):
    """Six layers of a kind side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(6))

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        values = [layer(x) for layer, x in zip(self.layers, inputs.values(), strict=True)]
        values = [norm(torch.tanh(x)) for norm, x in zip(self.norms, values, strict=True)]
        return torch.cat([torch.tanh(x) for x in values], 1).sum(1)


@pytest.fixture(scope="module")
def many() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return Many(), {name: torch.randn(3, 4) for name in "abcdef"}


def test_layers_of_a_kind_become_one_and_train_as_before(many: Any) -> None:
    module, inputs = dynamo(*many)
    fusion = registry.create("batch_fusion", {"kinds": KINDS})
    outcome = Pipeline((fusion,)).run(copy.deepcopy(module), ledger := RecompileLedger())
    assert ledger.performed() == 0
    assert outcome.runs[0].note == "linear; layer_norm; tanh"
    targets = [str(node.target) for node in outcome.module.graph.nodes]
    assert sum("layer_norm" in target for target in targets) == 1
    assert sum("baddbmm" in target for target in targets) == 1
    assert_close(step(outcome.module, inputs), step(module, inputs), fusion)


def test_the_same_behind_autograd(many: Any) -> None:
    fusion = registry.create("batch_fusion", {"kinds": KINDS, "at_least": 3})
    notes = []
    for module, inputs in aot(*many):
        ran = run(module, fusion)
        notes.append(ran.note)
        assert_same(module, ran.module, *inputs)
    assert "tanh" in notes[0]
    assert "linear" in notes[1]
    module, keywords = exported(*many)
    ran = run(module, registry.create("batch_fusion", {"kinds": ["tanh"]}))
    assert ran.note == "tanh"
    assert_same(module, ran.module, **keywords[0])


def test_a_graph_that_writes_is_left_alone() -> None:
    def write(a: torch.Tensor) -> torch.Tensor:
        return (a * 1).add_(1).view(4, 6).relu()

    for name in ("inductor_joint_graph", "inductor_post_grad", "batch_fusion"):
        ran = run(_aten(write, A), registry.create(name))
        assert not ran.changed
        assert "functionalize" in ran.note


BAD: dict[str, Callable[[GraphModule], object]] = {
    "raised": lambda module: module.graph.erase_node(next(iter(module.graph.nodes))),
    "layout": lambda module: _retarget(module, torch.ops.aten.sin.default, torch.ops.aten.sum.default),
    "cannot be serialized": lambda module: _retarget(module, torch.ops.aten.sin.default, copy.copy),
    "side effects": lambda module: _retarget(
        module, torch.ops.aten.bernoulli.default, torch.ops.aten.abs.default
    ),
    "writes": lambda module: _retarget(
        module, torch.ops.aten.abs.default, torch.ops.aten.abs_.default
    ),
    "view": lambda module: _retarget(
        module, torch.ops.aten.sin.default, torch.ops.aten.alias.default
    ),
}  # fmt: skip


def _retarget(module: GraphModule, old: Any, new: Any) -> None:
    for node in module.graph.find_nodes(op="call_function", target=old):
        node.target = new


@pytest.mark.parametrize("reason", BAD)
def test_a_step_that_does_more_than_it_should_is_taken_back(reason: str) -> None:
    module = _aten(lambda a: (torch.bernoulli(a * 0).abs() + a).sin(), A)
    before = [node.format_node() for node in module.graph.nodes]
    made = run_steps(module, [TorchStep("bad", lambda m, _: BAD[reason](m))], "val")
    assert not made.changed
    assert made.note.startswith("bad reverted: ")
    assert reason in made.note
    assert [node.format_node() for node in module.graph.nodes] == before


def test_unknown_steps_are_refused_by_name() -> None:
    with pytest.raises(PassError, match="no step is named 'pad_mm'") as caught:
        registry.create("inductor_joint_graph", {"steps": ["pad_mm"]})
    assert caught.value.field == "options"
    with pytest.raises(PassError, match="it must be one of 'linear', 'layer_norm'"):
        registry.create("batch_fusion", {"kinds": ["conv"]})


def test_steps_of_symbolic_graphs_need_shapes() -> None:
    ran = run(symbolic_trace(lambda a: torch.cat([a, a])), registry.create("inductor_pre_grad"))
    assert (ran.changed, "shapes" in ran.note) == (False, True)


def test_draws_of_one_kind_do_not_change_places() -> None:
    """What the first dropout drops the second would, as in an encoder and its decoder."""

    def two(x: torch.Tensor) -> torch.Tensor:
        early = torch.nn.functional.dropout(x + 1, 0.5, True)
        late = torch.nn.functional.dropout(x + 2, 0.5, True)
        return torch.tanh(late) * 2 + early

    module = _calls(two, A)
    ran = run(module, registry.create("inductor_post_grad"))
    assert "reorder_for_locality reverted: a call with side effects" in ran.note
    results = []
    for each in (module, ran.module):
        torch.manual_seed(0)
        results.append(each(A))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)

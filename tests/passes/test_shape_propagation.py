"""Shapes from fake tensors: nothing runs, nothing leaks, nothing is made up."""

from typing import Any

import pytest
import torch
from passes.running import decoded, run
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx.shared import wire
from lazyfx_server.passes import Registry
from lazyfx_server.passes.builtin.inspecting.shape_propagation import ShapePropagation

propagate = ShapePropagation()


def with_inputs(
    module: GraphModule, *values: Any, mode: FakeTensorMode | None = None
) -> GraphModule:
    mode = mode or FakeTensorMode()
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node, value in zip(inputs, values, strict=True):
        node.meta["val"] = mode.from_tensor(value) if isinstance(value, Tensor) else value
    return module


def shapes(module: GraphModule) -> dict[str, tuple[int, ...]]:
    return {
        n.name: tuple(n.meta["val"].shape)
        for n in module.graph.nodes
        if isinstance(n.meta.get("val"), Tensor)
    }


def test_values_of_every_kind_of_call() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 6)
            self.scale = nn.Parameter(torch.ones(6, dtype=torch.float64))

        def forward(self, x: Tensor) -> Any:
            y = self.layer(x)
            rows, columns = torch.split(y, 3, dim=1)
            return (rows.t() @ columns).sum(), y * self.scale

    module = with_inputs(symbolic_trace(Model()), torch.ones(5, 4))
    ran = run(module, propagate)
    assert ran.changed
    found = {str(n.target): n.meta["val"] for n in ran.module.graph.nodes if "val" in n.meta}
    assert tuple(found["layer"].shape) == (5, 6)
    assert tuple(found["sum"].shape) == ()
    mul = next(n for n in ran.module.graph.nodes if n.name == "mul")
    assert (mul.meta["val"].dtype, tuple(mul.meta["val"].shape)) == (torch.float64, (5, 6))
    assert isinstance(mul.meta["val"], FakeTensor)
    split = next(n for n in ran.module.graph.nodes if n.target is torch.split)
    assert [tuple(t.shape) for t in split.meta["val"]] == [(5, 3), (5, 3)]


def test_a_graph_without_input_shapes_is_left_alone() -> None:
    ran = run(symbolic_trace(nn.Linear(2, 2)), propagate)
    assert (ran.changed, ran.note) == (False, "skipped: the inputs have no shapes")


def test_what_cannot_be_known_is_said() -> None:
    module = symbolic_trace(lambda x, y: (x + 1, x + y))
    x, _ = (n for n in module.graph.nodes if n.op == "placeholder")
    x.meta["val"] = FakeTensorMode().from_tensor(torch.ones(3))
    ran = run(module, propagate)
    assert ran.note == "1 inputs have no shapes, 2 values unknown"
    assert set(shapes(ran.module)) == {"x", "add"}


def test_metadata_for_cuda_needs_no_cuda() -> None:
    mode = FakeTensorMode()
    device = torch.device("cuda", 0)
    with mode:
        x, w = torch.empty(2, 4, device=device), torch.empty(4, 4, device=device)
    module = symbolic_trace(lambda x, w: torch.relu(x @ w) + torch.ones(4, device=x.device))
    ran = run(with_inputs(module, x, w, mode=mode), propagate)
    assert ran.note == ""
    calls = [n for n in ran.module.graph.nodes if n.op == "call_function" and n.name != "getattr_1"]
    assert {n.meta["val"].device for n in calls} == {device}


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "xpu", "mps"])
def test_a_training_graph_of_a_device_that_torch_lacks_ends_no_process(device: str) -> None:
    mode = FakeTensorMode()
    with mode:
        x, w = torch.empty(2, 4, device=device), torch.empty(4, 4, device=device)
    x.requires_grad_()
    module = symbolic_trace(lambda x, w: torch.sin(x @ w))
    for node, value in zip(module.graph.nodes, (x, w), strict=False):
        node.meta["val"] = value
    ran = run(decoded(module), propagate, in_place=True)
    assert ran.note == ""
    value = ran.module.graph.output_node().all_input_nodes[0].meta["val"]
    assert value.device.type == torch.device(device).type


def test_decoded_attributes_have_the_device_that_they_stand_for() -> None:
    program = torch.export.export(nn.Linear(3, 2), (torch.ones(4, 3),))
    module = decoded(program.module(check_guards=False))
    for node in module.graph.nodes:
        if node.op == "get_attr":
            node.meta.pop(wire.META_KEY, None)
    ran = run(module, propagate, in_place=True)
    assert ran.note == ""
    attributes = [n for n in ran.module.graph.nodes if n.op == "get_attr"]
    assert attributes
    assert all(n.meta["val"].device.type == "cpu" for n in attributes)


def test_nothing_real_runs() -> None:
    huge = 1 << 30
    module = symbolic_trace(lambda x: (x.expand(huge, huge) * 2).sum())
    ran = run(with_inputs(module, torch.ones(1, 1)), propagate)
    assert shapes(ran.module)["mul"] == (huge, huge)


def test_buffers_are_not_updated() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).train()
    module = with_inputs(symbolic_trace(model), torch.ones(4, 3))
    ran = run(module, propagate)
    norm = ran.module.get_submodule("0")
    assert ran.changed
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert type(norm.running_mean) is Tensor


def test_random_draws_draw_nothing() -> None:
    module = with_inputs(symbolic_trace(lambda x: torch.rand_like(x)), torch.ones(3))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    run(module, propagate)
    assert torch.equal(torch.get_rng_state(), state)


def test_switches_in_the_graph_do_not_leak() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    graph.call_function(torch._C._set_grad_enabled, (False,))
    graph.call_function(
        torch.amp.autocast_mode._enter_autocast, ("cpu", torch.bfloat16, True, True)
    )
    y = graph.call_function(torch.mm, (x, x))
    graph.output(y)
    ran = run(with_inputs(GraphModule(nn.Module(), graph), torch.ones(3, 3)), propagate)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    mm = next(n for n in ran.module.graph.nodes if n.target is torch.mm)
    assert mm.meta["val"].dtype == torch.bfloat16


def test_an_operator_that_fails_keeps_what_was_known() -> None:
    module = symbolic_trace(lambda x: torch.mm(x, x) + 1)
    ran = run(with_inputs(module, torch.ones(3, 4)), propagate)
    assert ran.note == "2 values unknown"


def test_in_place_changes_of_shape_do_not_reach_back() -> None:
    module = symbolic_trace(lambda x: (x * 1).unsqueeze_(0))
    ran = run(with_inputs(module, torch.ones(3)), propagate)
    assert shapes(ran.module) == {"x": (3,), "mul": (3,), "unsqueeze_": (1, 3)}


def test_dynamic_sizes_stay_symbolic() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x]).flatten()

    rows = torch.export.Dim("rows", min=2, max=100)
    program = torch.export.export(Model(), (torch.ones(4, 3),), dynamic_shapes={"x": {0: rows}})
    module = program.module(check_guards=False)
    for made in (module, decoded(module)):
        for node in made.graph.nodes:
            if node.op == "call_function":
                node.meta.pop("val", None)
                node.meta.pop(wire.META_KEY, None)
        ran = run(made, propagate)
        assert ran.changed
        assert ran.note == ""
        flat = [n for n in ran.module.graph.nodes if n.op == "call_function"][-1].meta["val"]
        assert isinstance(flat.shape[0], torch.SymInt)


def test_nested_graphs_are_walked_not_called() -> None:
    inner = symbolic_trace(lambda x: torch.cat([x, x]))
    graph = Graph()
    graph.output(graph.call_module("inner", (graph.placeholder("x"),)))
    root = nn.Module()
    root.inner = inner
    ran = run(with_inputs(GraphModule(root, graph), torch.ones(2, 3)), propagate)
    assert shapes(ran.module)["inner"] == (4, 3)


def test_higher_order_operators() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = torch.cat([x, x])
            return y * 2 + x.sum()

    program = torch.export.export(Model(), (torch.ones(2, 3, requires_grad=True),))
    module = program.module(check_guards=False)
    for node in module.graph.nodes:
        if node.op != "placeholder":
            node.meta.pop("val", None)
    ran = run(module, propagate)
    assert ran.note == ""


def test_a_symbol_that_stands_where_a_number_was_known() -> None:
    """`view(-1)` of what was made under symbols: one side says 12, the other 4 * s0."""
    module = make_fx(
        lambda x: torch.stft(x.reshape(-1), 4, return_complex=True, window=torch.ones(4)),
        tracing_mode="symbolic",
    )(torch.randn(3, 3))
    x = torch.randn(3, 3)
    ran = run(decoded(module), propagate)
    assert torch.equal(ran.module(x), module(x))


def test_a_level_that_a_graph_enters_and_does_not_leave_ends_with_the_pass() -> None:
    """A process has one level of forward-mode derivatives: the next graph's would be nested."""
    graph = Graph()
    x = graph.placeholder("x")
    graph.call_function(torch._C._enter_dual_level)
    graph.output(graph.call_function(torch.sin, (x,)))
    module = with_inputs(GraphModule(nn.Module(), graph), torch.ones(3))
    for one in (propagate, Registry().create("analyze")):
        run(module, one)
        torch.func.jvp(torch.sin, (torch.ones(2),), (torch.ones(2),))

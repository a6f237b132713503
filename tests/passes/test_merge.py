"""Equal values are computed once; values that only look equal are not merged."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, GraphModule, symbolic_trace

from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import PassRun, Pipeline, Registry

aten = torch.ops.aten


def merge(module: GraphModule) -> PassRun:
    pipeline = Pipeline((Registry().create("common_subexpression_elimination"),))
    outcome = pipeline.run(module, RecompileLedger())
    assert outcome.module is module, "edited in place"
    module.graph.lint()
    return outcome.runs[0]


def merged(module: GraphModule) -> int:
    run = merge(module)
    assert run.changed == (run.nodes_before != run.nodes_after)
    assert run.performed == 0
    return run.nodes_before - run.nodes_after


def count(module: GraphModule, target: Any) -> int:
    return sum(n.target == target for n in module.graph.nodes)


def test_equal_calls_become_one() -> None:
    module = symbolic_trace(lambda x: torch.relu(x).sum() + torch.relu(x).sum())
    assert merged(module) == 2
    x = torch.randn(4)
    torch.testing.assert_close(module(x), torch.relu(x).sum() * 2)


def test_the_first_keeps_its_name_and_metadata() -> None:
    module = symbolic_trace(lambda x: torch.relu(x) + torch.relu(x))
    first, second = module.graph.find_nodes(op="call_function", target=torch.relu)
    first.meta["val"], second.meta["val"] = "first", "second"
    merge(module)
    (left,) = module.graph.find_nodes(op="call_function", target=torch.relu)
    assert (left.name, left.meta["val"]) == ("relu", "first")


def test_a_second_run_finds_nothing() -> None:
    module = symbolic_trace(lambda x: (x + 1) * (x + 1))
    assert merged(module) == 1
    run = merge(module)
    assert (run.changed, run.requested) == (False, 0)


def test_slices_and_order_of_keywords() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        a = x[1:, None, :2] + x[1:, None, :2]
        return a + torch.sum(x, dim=0, keepdim=True).exp() + torch.sum(x, keepdim=True, dim=0).exp()

    module = symbolic_trace(function)
    assert merged(module) == 3
    x = torch.randn(2, 2)
    torch.testing.assert_close(module(x), function(x))


def _of(value: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.add(x, value)


@pytest.mark.parametrize(
    "pair", [(1, True), (1, 1.0), (0.0, -0.0), (True, 1.0), ((1,), [1])], ids=str
)
def test_literals_differ_by_type(pair: tuple[Any, Any]) -> None:
    graph = Graph()
    x = graph.placeholder("x")
    calls = [graph.call_function(torch.add, (x, value)) for value in pair]
    graph.output(graph.call_function(torch.maximum, tuple(calls)))
    assert merged(GraphModule(nn.Module(), graph)) == 0


def test_nan_equals_itself() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    calls = [graph.call_function(aten.add.Scalar, (x, float("nan"))) for _ in range(2)]
    graph.output(graph.call_function(aten.maximum.default, tuple(calls)))
    assert merged(GraphModule(nn.Module(), graph)) == 1


@pytest.mark.parametrize(
    "draw",
    [
        torch.rand_like,
        lambda x: F.dropout(x, 0.5, True),
        lambda x: torch.bernoulli(x),
        lambda x: x.bernoulli(),
        lambda x: aten.native_dropout.default(x, 0.5, True)[0],
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
        torch.empty_like,
    ],
)
def test_draws_and_uninitialized_memory_are_not_merged(
    draw: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    module = symbolic_trace(lambda x: draw(x) + draw(x))
    assert merged(module) == 0


def test_dropout_that_is_off_is_merged() -> None:
    module = symbolic_trace(lambda x: F.dropout(x, 0.5, False) + F.dropout(x, 0.5, False))
    assert merged(module) == 1


def test_modules() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.drop, self.norm = nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x) + self.linear(x)
            return self.drop(y) + self.drop(y) + self.norm(y) + self.norm(y)

    assert merged(symbolic_trace(Model().train())) == 1
    assert merged(symbolic_trace(Model().eval())) == 3


def _written_between(x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    a = y.exp()
    y.add_(1)
    return a.sum() + y.exp().sum()


def _written_after(x: torch.Tensor) -> torch.Tensor:
    a = x + 1
    b = x + 1
    a.mul_(3)
    return a.sum() + b.sum()


def _view_written_after(x: torch.Tensor) -> torch.Tensor:
    a = (x + 1).view(-1)
    b = (x + 1).view(-1)
    a.mul_(3)
    return a.sum() + b.sum()


def _fresh_written(x: torch.Tensor) -> torch.Tensor:
    a = torch.zeros_like(x)
    b = torch.zeros_like(x)
    a.select(0, 0).fill_(5.0)
    return a.sum() + b.sum() + x.sum()


def _input_written(x: torch.Tensor) -> torch.Tensor:
    a = x.sum()
    x.add_(1)
    return a + x.sum()


@pytest.mark.parametrize(
    "function",
    [_written_between, _written_after, _view_written_after, _fresh_written, _input_written],
)
def test_writes_are_seen(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    module = symbolic_trace(function)
    merge(module)
    x = torch.randn(3)
    torch.testing.assert_close(module(x.clone()), function(x.clone()))


def test_values_between_writes_are_merged() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        y.add_(1)
        a = y.exp() + y.exp()
        y.add_(1)
        return a + y

    module = symbolic_trace(function)
    assert merged(module) == 1
    x = torch.randn(3)
    torch.testing.assert_close(module(x), function(x))


def test_inputs_that_are_one_tensor() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        a = x + 1
        y.add_(1)
        return a * (x + 1)

    module = symbolic_trace(function)
    assert merged(module) == 0
    x, expected = torch.ones(2), torch.ones(2)
    torch.testing.assert_close(module(x, x), function(expected, expected))


def test_two_results_stay_two_tensors() -> None:
    module = symbolic_trace(lambda x: (x + 1, x + 1, (x + 2).view(-1), (x + 2).view(-1)))
    merge(module)
    results = module(torch.zeros(2))
    results[0].add_(10)
    results[2].add_(10)
    assert results[1].tolist() == [1, 1]
    assert results[3].tolist() == [2, 2]


def test_one_result_may_be_what_others_read() -> None:
    module = symbolic_trace(lambda x: (x + 1, (x + 1).exp()))
    assert merged(module) == 1


def test_values_on_two_sides_of_a_switch() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    before = graph.call_function(torch.mul, (x, 2))
    graph.call_function(torch._C._set_grad_enabled, (False,))
    inside = graph.call_function(torch.mul, (x, 2))
    again = graph.call_function(torch.mul, (x, 2))
    graph.call_function(torch._C._set_grad_enabled, (True,))
    graph.output(graph.call_function(torch.stack, ([before, inside, again],)))
    module = GraphModule(nn.Module(), graph)
    assert merged(module) == 1
    value = torch.ones(2, requires_grad=True)
    module(value).sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [2, 2]


def test_attributes() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(()))
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = Model()
    graph = Graph()
    x = graph.placeholder("x")
    reads = [graph.get_attr("weight"), graph.get_attr("weight"), graph.get_attr("steps")]
    a = graph.call_function(torch.add, (reads[2], 1))
    graph.call_method("add_", (graph.get_attr("steps"), 1))
    b = graph.call_function(torch.add, (graph.get_attr("steps"), 1))
    graph.output(graph.call_function(torch.stack, ([x, reads[0], reads[1], a, b],)))
    module = GraphModule(model, graph)
    merge(module)
    assert count(module, "weight") == 1
    assert module(torch.zeros(())).tolist() == [0, 1, 1, 1, 2]
    assert module(torch.zeros(())).tolist() == [0, 1, 1, 2, 3]


def test_bodies_are_merged_inside_and_never_with_each_other() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda a: a.exp() + a.exp(), lambda a: a.clone(), (x,))

    module = torch.export.export(Model(), (torch.randn(4),), strict=False).module(
        check_guards=False
    )
    bodies = [m for n, m in module.named_modules() if n and isinstance(m, GraphModule)]
    assert sum(count(b, aten.exp.default) for b in bodies) == 2
    run = merge(module)
    assert run.changed
    assert sum(count(b, aten.exp.default) for b in bodies) == 1
    x = torch.randn(4)
    torch.testing.assert_close(module(x), Model()(x))


def test_unhashable_targets_and_containers_of_nodes() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        a = torch.cat([x, x + 1], dim=0) + torch.cat([x, x + 1], dim=0)
        return F.pad(a, (0, 1)) + F.pad(a, [0, 1])

    module = symbolic_trace(function)
    merge(module)
    x = torch.randn(2)
    torch.testing.assert_close(module(x), function(x))

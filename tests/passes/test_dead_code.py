"""Dead code goes; whatever does something stays."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, symbolic_trace

from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import PassRun, Pipeline, Registry


def clean(module: GraphModule) -> PassRun:
    pipeline = Pipeline((Registry().create("dead_code_elimination"),))
    outcome = pipeline.run(module, RecompileLedger())
    outcome.module.graph.lint()
    return outcome.runs[0]


def dynamo(function: Callable[..., Any], *args: Any) -> GraphModule:
    caught: list[GraphModule] = []

    def backend(module: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        caught.append(module)
        return module.forward

    torch._dynamo.reset()
    torch.compile(function, backend=backend, fullgraph=True)(*args)
    return caught[0]


def test_unused_nodes_go_and_so_do_those_that_only_they_used() -> None:
    def function(x: torch.Tensor, unused: torch.Tensor) -> torch.Tensor:
        (unused.exp() + 1).view(-1)
        return x + 1

    module = symbolic_trace(function)
    run = clean(module)
    assert [n.op for n in module.graph.nodes] == [
        "placeholder",
        "placeholder",
        "call_function",
        "output",
    ]
    assert (run.changed, run.nodes_before - run.nodes_after, run.note) == (
        True,
        3,
        "3 nodes removed",
    )
    assert (run.requested, run.performed) == (1, 0)


def test_nothing_to_remove_is_no_change() -> None:
    run = clean(symbolic_trace(lambda x: x + 1))
    assert (run.changed, run.requested, run.note) == (False, 0, "")


def _setitem(x: torch.Tensor) -> torch.Tensor:
    x[0] = 1.0
    return x + 1


def _view_add(x: torch.Tensor) -> torch.Tensor:
    x.view(-1).add_(1)
    return x + 1


def _relu_in_place(x: torch.Tensor) -> torch.Tensor:
    F.relu(x, inplace=True)
    return x + 1


def _out(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros_like(x)
    torch.add(x, 2, out=y)
    return y + 1


def _augmented(x: torch.Tensor) -> torch.Tensor:
    y = x
    y += 1
    return x + 1


@pytest.mark.parametrize("function", [_setitem, _view_add, _relu_in_place, _out, _augmented])
def test_writes_stay(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(0)
    modules = [dynamo(function, torch.randn(3, 4))]
    if function not in (_setitem, _augmented):  # symbolic tracing does not see these
        modules.append(symbolic_trace(function))
    for module in modules:
        clean(module)
        x = torch.randn(3, 4)
        ours, theirs = x.clone(), x.clone()
        result = module(ours)
        result = result[0] if isinstance(result, tuple) else result
        torch.testing.assert_close(result, function(theirs))
        torch.testing.assert_close(ours, theirs)


def test_running_statistics_are_updated() -> None:
    """torch's default removes the update of `num_batches_tracked` from dynamo's graphs."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).train()
    x = torch.randn(2, 3, 8, 8)
    module = dynamo(model, x)
    before = len(module.graph.nodes)
    assert not clean(module).changed
    assert len(module.graph.nodes) == before
    assert any(n.target in {"add_", torch.Tensor.add_} for n in module.graph.nodes)


def test_vmap_levels_stay_paired() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.vmap(lambda row: row.exp().sum())(x)

    module = dynamo(function, torch.randn(3, 4))
    clean(module)
    x = torch.randn(3, 4)
    torch.testing.assert_close(module(x)[0], function(x))


def test_random_draws_stay_in_their_order() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        torch.rand_like(x)
        return x + torch.rand_like(x)

    module = symbolic_trace(function)
    assert not clean(module).changed
    x = torch.ones(5)
    torch.manual_seed(3)
    expected = function(x)
    torch.manual_seed(3)
    assert torch.equal(module(x), expected)


def test_assertions_and_grad_mode_stay() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._assert(x.shape[0] > 1, "too small")
            with torch.no_grad():
                y = x * 2
            return x + y

    module = dynamo(Model(), torch.randn(3, 4, requires_grad=True))
    switches = sum("grad" in str(n.target) for n in module.graph.nodes)
    clean(module)
    assert sum("grad" in str(n.target) for n in module.graph.nodes) == switches
    x = torch.randn(3, 4, requires_grad=True)
    module(x)[0].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.ones(3, 4))


def test_bodies_are_cleaned_too() -> None:
    def body(x: torch.Tensor) -> torch.Tensor:
        x.exp()
        return x + 1

    program = torch.export.export(_Cond(body), (torch.randn(4),), strict=False)
    module = program.module(check_guards=False)
    sizes = {n: len(m.graph.nodes) for n, m in _bodies(module).items()}
    clean(module)
    after = {n: len(m.graph.nodes) for n, m in _bodies(module).items()}
    assert sizes.keys() == after.keys()
    assert (
        any("exp" in str(n.target) for m in _bodies(module).values() for n in m.graph.nodes)
        is False
    )
    x = torch.randn(4)
    torch.testing.assert_close(module(x), _Cond(body)(x))


def test_a_dead_call_of_a_pure_module_goes_with_its_reads() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.dead, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.dead(x) * self.weight
            self.norm(x)
            return self.used(x)

    module = symbolic_trace(Model().train())
    clean(module)
    assert [n.target for n in module.graph.nodes if n.op == "call_module"] == ["norm", "used"]
    assert not module.graph.find_nodes(op="get_attr", target="weight")
    module = symbolic_trace(Model().eval())
    clean(module)
    assert [n.target for n in module.graph.nodes if n.op == "call_module"] == ["used"]


class _Cond(nn.Module):
    def __init__(self, body: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, self.body, lambda a: a.clone(), (x,))


def _bodies(module: GraphModule) -> dict[str, GraphModule]:
    return {n: m for n, m in module.named_modules() if n and isinstance(m, GraphModule)}

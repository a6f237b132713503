"""Graphs retraced into aten operators train as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from passes.captures import dynamo, exported, total_of
from passes.running import decoded, run
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from lazyfx_server.passes import Registry

PASSES = {name: Registry().create(name) for name in ("functionalize", "decompose")}


class Rounding(nn.Module):
    """Its gradient is that of what it rounds."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.round() - x).detach()


class Patches(nn.Module):
    """A view behind a normalization of values that lie in another order in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2).reshape(-1, 6).sin()


class Images(Patches):
    """The same of pictures that are channels last, and of a part of one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        pictures = x.unsqueeze(0).permute(0, 3, 1, 2)
        whole, part = self.norm(pictures), self.norm(pictures[:, :, 1:, ::2])
        return torch.cat([whole.permute(0, 2, 3, 1).reshape(-1), part.reshape(-1)])


@pytest.mark.parametrize("way", ["export", "dynamo"])
@pytest.mark.parametrize("make", [Rounding, Patches, Images])
@pytest.mark.parametrize("name", PASSES)
def test_a_training_step(make: Callable[[], nn.Module], name: str, way: str) -> None:
    torch.manual_seed(0)
    model = make().train()
    x = torch.randn(3, 4, 6, requires_grad=True)
    module, inputs = (exported if way == "export" else dynamo)(model, {"x": x})
    done = run(module, PASSES[name])
    assert done.changed or (way, make) == ("export", Rounding)
    gradients = []
    for graph in (module, done.module):
        own = [tree_map(_copy, value) for value in inputs]
        total_of(graph(**own[0]) if way == "export" else graph(*own)).backward()
        gradients.append([t.grad for t in (*tree_leaves(own), *graph.parameters())])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert any(g is not None and g.any() for g in gradients[0])


def _copy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


@pytest.mark.parametrize("name", PASSES)
def test_a_graph_of_a_device_that_this_torch_lacks(name: str) -> None:
    device = torch.device("cuda", 0)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(nn.functional.gelu, (x,)))
    with FakeTensorMode():
        x.meta["val"] = torch.empty(3, 4, device=device).requires_grad_()
    done = run(decoded(torch.fx.GraphModule({}, graph)), PASSES[name])
    assert done.changed, done.note


def _written_as_contiguous(x: Tensor) -> Tensor:
    y = x * 2
    y.contiguous().add_(1)
    return y


def _written_below_a_view(x: Tensor) -> Tensor:
    y = x * 2
    piece = torch.unsafe_split(y, 2)[0]
    y.add_(1)
    return piece * 1


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "which autograd does not follow": lambda x: (x * 2).detach().add_(1),
    "data, which autograd": lambda x: x.data.add_(1),
    "as_strided, which autograd": lambda x: torch.as_strided(x * 2, (2,), (1,)).fill_(3.0),
    "view, which autograd": lambda x: (x * 2).view(torch.int32).add_(1),
    "scales its weight": lambda x: torch.nn.functional.embedding(
        torch.tensor([0]), x * 2, max_norm=1.0
    ),
    "not known to be a view": lambda x: torch.unsafe_split(x * 2, 1)[0].add_(1),
    "reshape is a view or a copy of what": lambda x: x.reshape(-1).add_(1),
    "contiguous is a view or a copy of what": _written_as_contiguous,
    "shows, whose result is not known to be a view": _written_below_a_view,
}


@pytest.mark.parametrize("reason", WRITES)
def test_writes_that_tracing_would_change(reason: str) -> None:
    module = torch.fx.symbolic_trace(WRITES[reason])
    with FakeTensorMode():
        next(iter(module.graph.nodes)).meta["val"] = torch.empty(3, 2, requires_grad=True)
    done = run(module, PASSES["functionalize"])
    assert reason in done.note
    assert not done.changed


@pytest.mark.parametrize("part", [nn.Flatten(), nn.Sequential(nn.Flatten())])
def test_a_write_through_a_module_that_may_copy(part: nn.Module) -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    with FakeTensorMode():
        x.meta["val"] = torch.empty(3, 2, 2)
    flat = graph.call_module("part", (x,))
    graph.output((graph.call_method("add_", (flat, 1)), x))
    done = run(torch.fx.GraphModule(nn.ModuleDict({"part": part}), graph), PASSES["functionalize"])
    assert "part is a view or a copy of what" in done.note
    turned, also = (torch.ones(3, 2, 2).transpose(1, 2) for _ in range(2))
    # Called with other strides than the capture's, Flatten makes a copy.
    torch.testing.assert_close(done.module(turned)[1], also)


@pytest.mark.parametrize("name", ["t_", "unsqueeze_"])
def test_an_input_that_gets_other_sizes(name: str) -> None:
    def change(x: Tensor) -> Tensor:
        return getattr(x, name)(*([0] if name == "unsqueeze_" else ())) * 2

    module = torch.fx.symbolic_trace(change)
    with FakeTensorMode():
        next(iter(module.graph.nodes)).meta["val"] = torch.empty(2, 3)
    done = run(module, PASSES["functionalize"])
    assert "changes the sizes of an input" in done.note
    x = torch.ones(2, 3)
    done.module(x)
    assert x.shape == ((3, 2) if name == "t_" else (1, 2, 3))


class Drawn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.dropout(x) + nn.functional.dropout(x, 0.3)
        draws = [torch.bernoulli(x, 0.5), torch.empty_like(x).uniform_(), torch.randn_like(x)]
        return [*draws, nn.functional.alpha_dropout(x, 0.2, training=True), x.bernoulli_(0.7)]


LAYOUTS = (
    torch.randn(2, 3, 4, 5),
    torch.randn(2, 4, 5, 3).permute(0, 3, 1, 2),
    torch.randn(4, 3, 2, 5).transpose(0, 2),
    torch.randn(2, 3, 4, 10)[..., ::2],
)


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("captured", LAYOUTS)
def test_random_numbers_are_drawn_in_the_order_of_memory(captured: Tensor, name: str) -> None:
    """Whatever strides the inputs have when the graph is called."""
    module, _ = dynamo(Drawn().train(), {"x": captured})
    done = run(module, PASSES[name])
    assert done.changed, done.note
    for x in LAYOUTS:
        found = []
        for graph in (module, done.module):
            torch.manual_seed(0)
            found.append([*tree_leaves(graph(given := x.clone())), given, torch.rand(1)])
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "bernoulli, by keyword": lambda x: torch.bernoulli(input=x, p=0.5),
    "bernoulli, no generator": lambda x: torch.bernoulli(x, 0.5, generator=None),
    "the method, no generator": lambda x: x.bernoulli(p=0.5, generator=None),
    "the operator, no generator": lambda x: torch.ops.aten.bernoulli.p(x, 0.5, generator=None),
    "the operator, by keyword": lambda x: torch.ops.aten.bernoulli.p(self=x, p=0.5),
    "dropout, by keyword": lambda x: torch.dropout(train=True, p=0.5, input=x),
    "alpha dropout, by keyword": lambda x: torch.alpha_dropout(input=x, p=0.5, train=True),
    "dropout's operator": lambda x: torch.ops.aten.dropout.default(input=x, p=0.5, train=True),
    "dropout in place": lambda x: torch.ops.aten.dropout_.default(self=x, p=0.5, train=True),
    "nothing drawn": lambda x: torch.dropout(input=x, p=0.5, train=False),
}


@pytest.mark.parametrize("captured", LAYOUTS[:2])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_draw_may_be_called_by_keyword(spelling: str, captured: Tensor) -> None:
    module = torch.fx.symbolic_trace(SPELLINGS[spelling])
    with FakeTensorMode() as mode:
        next(iter(module.graph.nodes)).meta["val"] = mode.from_tensor(captured)
    done = run(module, PASSES["functionalize"])
    assert done.changed, done.note
    for x in LAYOUTS[:2]:
        found = []
        for graph in (module, done.module):
            torch.manual_seed(0)
            found.append([graph(x.clone()), torch.rand(1)])
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["bernoulli", "bernoulli_"])
def test_a_draw_of_another_generator_is_left_alone(name: str) -> None:
    graph = torch.fx.Graph()
    x, generator = graph.placeholder("x"), graph.placeholder("generator")
    with FakeTensorMode():
        x.meta["val"] = torch.empty(2, 3)
    fresh = graph.call_function(torch.ops.aten.mul.Scalar, (x, 1))
    graph.output(graph.call_method(name, (fresh, 0.5), {"generator": generator}))
    done = run(torch.fx.GraphModule({}, graph), PASSES["functionalize"])
    assert "draws random numbers in an order" in done.note


def test_a_draw_whose_functional_form_is_another_is_left_alone() -> None:
    """On a part of a tensor, torch fills a contiguous copy, with another algorithm."""
    module, _ = dynamo(_filled, {"x": torch.zeros(64)})
    assert "draws random numbers in an order" in run(module, PASSES["functionalize"]).note


def _filled(x: Tensor) -> Tensor:
    return x.normal_()

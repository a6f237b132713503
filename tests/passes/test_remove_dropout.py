"""Dropout that drops nothing goes, dropout that drops stays."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from passes.running import assert_same, run, targets
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, symbolic_trace

from lazyfx_server.passes.builtin.simplifying.remove import RemoveDropout

aten = torch.ops.aten
remove = RemoveDropout()

MODULES = [
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
]  # fmt: skip
FUNCTIONS = [
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
]  # fmt: skip


def call(target: Callable[..., Any], *args: Any, **kwargs: Any) -> GraphModule:
    graph = Graph()
    x = graph.placeholder("x")
    y = graph.call_function(target, (x, *args), kwargs)
    graph.output(graph.call_function(torch.add, (y, 1)))
    return GraphModule(nn.Module(), graph)


@pytest.mark.parametrize("kind", MODULES)
def test_modules(kind: type[nn.Module]) -> None:
    model = nn.Sequential(kind(0.5), nn.ReLU())
    assert not run(symbolic_trace(model.train()), remove).changed
    module = symbolic_trace(model.eval())
    ran = run(module, remove)
    assert ran.note == "1 dropouts removed"
    assert_same(module, ran.module, torch.randn(2, 3, 4))
    assert run(symbolic_trace(nn.Sequential(kind(0.0)).train()), remove).changed


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions(function: Callable[..., Any]) -> None:
    for removed, args, kwargs in (
        (True, (0.5, False), {}),
        (True, (), {"p": 0.5, "training": False}),
        (True, (0.0, True), {}),
        (True, (), {"training": False, "inplace": True}),
        (False, (0.5, True), {}),
    ):
        ran = run(call(function, *args, **kwargs), remove)
        assert ran.changed is removed
        assert targets(ran.module) == ([torch.add] if removed else [function, torch.add])


@pytest.mark.parametrize(
    ("target", "args", "removed"),
    [
        (aten.dropout.default, (0.1, False), True),
        (aten.dropout.default, (0.1, True), False),
        (aten.dropout.default, (0.0, True), True),
        (aten.dropout_.default, (0.1, False), True),
        (aten.dropout, (0.1, False), True),
        (aten.feature_dropout.default, (0.1, False), True),
        (aten.alpha_dropout.default, (0.1, True), False),
        (torch.dropout, (0.1, False), True),
        (torch.dropout, (0.1, True), False),
        (torch.feature_alpha_dropout, (0.1, False), True),
    ],
)
def test_operators(target: Callable[..., Any], args: tuple[Any, ...], removed: bool) -> None:
    module = call(target, *args)
    ran = run(module, remove)
    assert ran.changed is removed
    if removed:
        assert_same(module, ran.module, torch.randn(3, 4))


def native(p: float, train: Any, use_mask: bool = False) -> GraphModule:
    graph = Graph()
    x = graph.placeholder("x")
    pair = graph.call_function(aten.native_dropout.default, (x, p, train))
    value = graph.call_function(operator.getitem, (pair, 0))
    mask = graph.call_function(operator.getitem, (pair, 1)) if use_mask else 1
    graph.output(graph.call_function(torch.mul, (value, mask)))
    return GraphModule(nn.Module(), graph)


def test_native_dropout_goes_when_its_mask_is_not_used() -> None:
    module = native(0.5, False)
    ran = run(module, remove)
    assert targets(ran.module) == [torch.mul]
    assert_same(module, ran.module, torch.randn(3))
    assert not run(native(0.5, False, use_mask=True), remove).changed
    assert not run(native(0.5, True), remove).changed
    assert not run(native(0.5, None), remove).changed


def test_a_probability_that_is_computed_is_not_guessed() -> None:
    graph = Graph()
    x, p = graph.placeholder("x"), graph.placeholder("p")
    graph.output(graph.call_function(F.dropout, (x, p, True)))
    assert not run(GraphModule(nn.Module(), graph), remove).changed


def test_nested_graphs() -> None:
    inner = symbolic_trace(nn.Sequential(nn.Dropout()).eval())
    graph = Graph()
    graph.output(graph.call_module("inner", (graph.placeholder("x"),)))
    root = nn.Module()
    root.inner = inner
    assert run(GraphModule(root, graph), remove).changed


def test_a_custom_subclass_of_dropout_stays() -> None:
    class Louder(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    graph = Graph()
    graph.output(graph.call_module("d", (graph.placeholder("x"),)))
    root = nn.Module()
    root.d = Louder().eval()
    assert not run(GraphModule(root, graph), remove).changed

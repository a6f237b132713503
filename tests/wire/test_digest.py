"""The digest sees what changes the computation, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from checks import created_publicly
from graphs import LazyModule, call, graphs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule

from lazyfx.shared import wire

MODERATE = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@given(graphs())
@MODERATE
def test_any_graph_comes_back(module: GraphModule) -> None:
    encoded = wire.encode(module)
    wire.check_canonical(encoded.body)
    for way in (nullcontext, created_publicly):
        with way():
            decoded = wire.decode(encoded.body, encoded.presentation, module_class=LazyModule)
        again = wire.encode(decoded)
        assert again.body == encoded.body
        assert again.presentation == encoded.presentation


@given(graphs(), st.randoms(use_true_random=False))
@MODERATE
def test_names_meta_and_the_order_of_keywords_do_not_count(
    module: GraphModule, random: Any
) -> None:
    expected = wire.digest(module)
    for number, node in enumerate(module.graph.nodes):
        node.meta["stack_trace"] = f"line {random.random()}"
        names = list(node.kwargs)
        random.shuffle(names)
        node.kwargs = {name: node.kwargs[name] for name in names}
        if node.op != "output":
            node._rename(f"other_{random.randrange(10**6)}_{number}")
        if node.op == "placeholder":
            node.target = node.name
    assert wire.digest(module) == expected


@given(graphs(), st.data())
@MODERATE
def test_another_target_counts(module: GraphModule, data: st.DataObject) -> None:
    before = wire.digest(module)
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    if calls:
        node = data.draw(st.sampled_from(calls))
        node.target = torch.ops.aten.sub.Tensor
        assert wire.digest(module) != before


def fake(*shape: int, **options: Any) -> GraphModule:
    """One input with a value."""
    strides = options.pop("stride", None)
    grad = options.pop("requires_grad", False)
    module = call("x", 1)
    with FakeTensorMode():
        value = torch.empty(shape, **options)
        if strides:
            value = torch.empty_strided(shape, strides, **options)
    next(iter(module.graph.nodes)).meta["val"] = value.requires_grad_(grad)
    return module


def constant(value: torch.Tensor, other: torch.Tensor | None = None) -> GraphModule:
    root = nn.Module()
    root.first = value
    root.second = value if other is None else other
    graph = Graph()
    names = ("first", "second")
    graph.output(graph.call_function(torch.add, tuple(graph.get_attr(name) for name in names)))
    module = LazyModule(root, graph)
    for name in names:
        # A GraphModule registers tensors as buffers; captures assign constants.
        delattr(module, name)
        setattr(module, name, getattr(root, name))
    return module


def leaf(module: nn.Module, *, training: bool = False) -> GraphModule:
    root = nn.Module()
    root.leaf = module
    root.train(training)
    graph = Graph()
    graph.output(graph.call_module("leaf", (graph.placeholder("x"),)))
    return LazyModule(root, graph)


def parameters(*, tied: bool) -> GraphModule:
    root = nn.Module()
    root.first = nn.Parameter(torch.ones(2, 2))
    root.second = root.first if tied else nn.Parameter(torch.ones(2, 2))
    graph = Graph()
    graph.output([graph.get_attr("first"), graph.get_attr("second")])
    return LazyModule(root, graph)


DIFFERENT: dict[str, list[Callable[[], GraphModule]]] = {
    "literals": [
        lambda value=value: call("x", value)
        for value in (
            *(1, True, 1.0, 0, False, 0.0, -0.0, float("nan"), float("inf"), None, "1"),
            *(2, [1], (1,), {"a": 1}, {1: 1}, {True: 1}, slice(1), ..., 1j, [], (), {}, [[1]]),
            *(torch.float32, torch.device("cpu"), torch.device("cuda"), torch.device("cuda", 0)),
            *(["x"], torch.preserve_format, torch.relu),
        )
    ],
    "structure": [
        lambda: call("x", "x"),
        lambda: call("x", 1),
        lambda: call(1, "x"),
        lambda: call("x", b=1),
        lambda: call("x", c=1),
        lambda: call("x", 1, target=torch.add),
        lambda: call("x", 1, target=torch.ops.aten.add),
        lambda: call("x", 1, target=torch.ops.aten.sub.Tensor),
    ],
    "metadata": [
        lambda: fake(2, 3),
        lambda: fake(3, 2),
        lambda: fake(6),
        lambda: fake(2, 3, dtype=torch.float64),
        lambda: fake(2, 3, stride=(1, 2)),
        lambda: fake(2, 3, requires_grad=True),
        lambda: fake(2, 3, device="meta"),
    ],
    "constants": [
        lambda: constant(torch.tensor([1.0, 2.0])),
        lambda: constant(torch.tensor([1.0, 3.0])),
        lambda: constant(torch.tensor([1, 2])),
        lambda: constant(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])),
        lambda: parameters(tied=True),
        lambda: parameters(tied=False),
    ],
    "leaf modules": [
        lambda: leaf(nn.Dropout(0.1)),
        lambda: leaf(nn.Dropout(0.1), training=True),
        lambda: leaf(nn.Dropout(0.2)),
        lambda: leaf(nn.Conv2d(2, 2, 3)),
        lambda: leaf(nn.Conv2d(2, 2, 3, padding=1)),
        lambda: leaf(nn.Conv2d(2, 2, 3, bias=False)),
        lambda: leaf(nn.BatchNorm2d(2)),
        lambda: leaf(nn.BatchNorm2d(2, eps=1e-3)),
        lambda: leaf(nn.ReLU()),
        lambda: leaf(nn.ReLU(inplace=True)),
        lambda: leaf(nn.ReLU6()),
    ],
}


@pytest.mark.parametrize("group", DIFFERENT)
def test_what_changes_the_computation_counts(group: str) -> None:
    digests = [wire.digest(make()) for make in DIFFERENT[group]]
    assert len(set(digests)) == len(digests)
    assert digests == [wire.digest(make()) for make in DIFFERENT[group]]


def test_every_nan_is_one_nan() -> None:
    assert wire.digest(call("x", float("nan"))) == wire.digest(call("x", -float("nan")))


def test_a_copy_has_the_same_digest() -> None:
    module = fake(2, 3)
    assert wire.digest(copy.deepcopy(module)) == wire.digest(module)


@pytest.mark.parametrize("index", [1, 7])
def test_the_index_of_the_only_device_does_not_count(index: int) -> None:
    def on(*indices: int) -> GraphModule:
        return call("x", *[torch.device("cuda", i) for i in indices])

    assert wire.digest(on(0)) == wire.digest(on(index))
    assert wire.digest(on(0, index)) == wire.digest(on(index, 0))
    assert wire.digest(on(0, 0)) != wire.digest(on(0, index))
    decoded = wire.decode(wire.encode(on(0, index)).body)
    assert decoded.graph.output_node().args[0].args[1:] == (
        torch.device("cuda", 0),
        torch.device("cuda", 1),
    )


def test_a_program_that_was_saved_and_loaded_is_the_same(tmp_path) -> None:
    """torch.export.load describes the output node, which a fresh capture leaves undescribed."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU())
    for module in (model.train(), model.eval()):
        program = torch.export.export(module, (torch.randn(2, 4),))
        torch.export.save(program, tmp_path / "saved.pt2")
        loaded = torch.export.load(tmp_path / "saved.pt2")
        assert wire.digest(loaded.graph_module) == wire.digest(program.graph_module)

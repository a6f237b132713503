"""A module that went through the server computes what the local one computes.

Five real models with all their layers, through export and dynamo, each built-in pass by
itself and all of them in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import models
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import lazyfx

pytestmark = pytest.mark.long

MODELS: Mapping[str, Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]] = {
    "gpt2": lambda: models.gpt2(layers=12),
    "bert": lambda: models.bert(layers=12),
    "t5": lambda: models.t5(layers=6),
    "llama": lambda: models.llama(layers=16),
    "resnet50": models.resnet50,
}
NAMED_PASSES = (
    "dead_code_elimination",
    "common_subexpression_elimination",
    "constant_fold",
    "remove_dropout",
    "fuse_conv_bn",
    "shape_propagation",
    "normalize_arguments",
)
REWRITE = lazyfx.replace_pattern((lambda x: torch.tanh(x), lambda x: torch.tanh(x) * 1.0))
PIPELINES: Mapping[str, list[str | lazyfx.PassSpec]] = {
    **{name: [name] for name in NAMED_PASSES},
    "replace_pattern": [REWRITE],
    "all": [*NAMED_PASSES, REWRITE, "shape_propagation"],
}


@cache
def model_and_example(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    model, example = MODELS[name]()
    generator = torch.Generator().manual_seed(7)
    for child in model.modules():
        if isinstance(child, nn.BatchNorm2d):
            # Statistics that matter: fresh ones (0 and 1) would hide a wrong fusion.
            child.running_mean.copy_(torch.randn(child.num_features, generator=generator) / 8)
            child.running_var.copy_(torch.rand(child.num_features, generator=generator) + 0.5)
    return model, example


def leaves(value: Any) -> list[Any]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def assert_same(expected: Any, actual: Any) -> None:
    ours, theirs = leaves(expected), leaves(actual)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(b, a)


@cache
def exported(name: str) -> torch.export.ExportedProgram:
    model, example = model_and_example(name)
    with torch.no_grad():
        return torch.export.export(model, (), example, strict=False)


@cache
def local_result(name: str) -> Any:
    model, example = model_and_example(name)
    with torch.no_grad():
        return model(**example)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", MODELS)
def test_exported_program(client: lazyfx.Client, name: str, pipeline: str) -> None:
    _, example = model_and_example(name)
    module = client.compile(exported(name), passes=PIPELINES[pipeline])
    expected = local_result(name)
    with torch.no_grad():
        actual = module(**example)
    assert_same(expected, actual)
    assert type(actual) is type(expected)


@cache
def dynamo_graphs(name: str) -> list[tuple[torch.fx.GraphModule, list[Any]]]:
    """What dynamo hands to a backend: graphs, and the flat inputs of their first call."""
    model, example = model_and_example(name)
    found: list[tuple[torch.fx.GraphModule, list[Any]]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> torch.fx.GraphModule:
        found.append((graph, inputs))
        return graph

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend)(**example)
    return found


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", MODELS)
def test_dynamo_graph(client: lazyfx.Client, name: str, pipeline: str) -> None:
    graphs = dynamo_graphs(name)
    assert graphs
    for graph, inputs in graphs:
        module = client.compile(graph, passes=PIPELINES[pipeline])
        with torch.no_grad():
            assert_same(graph(*inputs), module(*inputs))


def test_a_handle_is_a_dynamo_backend(client: lazyfx.Client) -> None:
    model, example = model_and_example("gpt2")

    def backend(graph: torch.fx.GraphModule, _inputs: list[Any]) -> lazyfx.RemoteModule:
        return client.compile(graph, passes=PIPELINES["all"])

    torch._dynamo.reset()
    with torch.no_grad():
        assert_same(model(**example), torch.compile(model, backend=backend)(**example))


@pytest.mark.parametrize("name", ["gpt2", "resnet50"])
def test_training_step_has_the_same_gradients_and_buffers(
    client: lazyfx.Client, name: str, training: Callable[[str], nn.Module]
) -> None:
    example = model_and_example(name)[1]
    passes = ["dead_code_elimination", "common_subexpression_elimination", "remove_dropout"]
    local, through = training(name), training(name)

    def backend(graph: torch.fx.GraphModule, _inputs: list[Any]) -> lazyfx.RemoteModule:
        return client.compile(graph, passes=passes)

    torch._dynamo.reset()
    step = torch.compile(through, backend=backend)
    for _ in range(2):
        for call in (local, step):
            torch.manual_seed(3)
            sum(leaf.float().square().mean() for leaf in leaves(call(**example))).backward()
    for (key, a), (_, b) in zip(local.named_parameters(), through.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), key
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, msg=lambda m, key=key: f"{key}: {m}")
    for (key, a), (_, b) in zip(local.named_buffers(), through.named_buffers(), strict=True):
        torch.testing.assert_close(b, a, msg=lambda m, key=key: f"{key}: {m}")


@pytest.fixture
def training() -> Iterator[Callable[[str], nn.Module]]:
    """Makes the same model in training mode each time."""

    def make(name: str) -> nn.Module:
        return MODELS[name]()[0].train()

    yield make
    torch._dynamo.reset()


def test_symbolic_trace_with_leaf_modules(client: lazyfx.Client) -> None:
    model, example = model_and_example("resnet50")
    traced = torch.fx.symbolic_trace(model)
    module = client.compile(traced, passes=PIPELINES["all"])
    with torch.no_grad():
        assert_same(model(**example), module(example["image"]))
    fused = next(p for p in module.report.passes if p.name == "fuse_conv_bn")
    assert fused.changed
    assert fused.note == "53 pairs fused"

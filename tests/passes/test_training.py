"""A training step through a transformed graph: same loss, gradients and buffers."""

import copy
from typing import Any

import models
import pytest
import torch
from passes.captures import aot, dynamo, exported, total_of
from torch import nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import Pipeline, Registry

PASSES = (
    "remove_dropout",
    "constant_fold",
    "fuse_conv_bn",
    "normalize_arguments",
    "common_subexpression_elimination",
    "dead_code_elimination",
    "shape_propagation",
)


@pytest.fixture(scope="module")
def steps() -> dict[str, tuple[GraphModule, list[Any]]]:
    """Dynamo's graphs of models in training, dropout and batch normalization switched on."""
    found = {}
    for name in ("gpt2", "resnet50"):
        model, example = getattr(models, name)()
        found[name] = dynamo(model.train(), example)
    return found


def _step(module: GraphModule, inputs: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Runs a step; returns results, gradients of the inputs, and the inputs afterwards."""
    own = [_own(value) for value in inputs]
    torch.manual_seed(11)
    results = module(*own)
    total_of(results).backward()
    tensors = [t for t in own if isinstance(t, torch.Tensor)]
    return tree_leaves(results), [t.grad for t in tensors], [t.detach() for t in tensors]


def _own(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _run(module: GraphModule, *names: str) -> tuple[GraphModule, RecompileLedger]:
    registry, ledger = Registry(), RecompileLedger()
    pipeline = Pipeline(tuple(registry.create(name) for name in names))
    return pipeline.run(copy.deepcopy(module), ledger).module, ledger


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("gpt2", ("common_subexpression_elimination",)),
        ("gpt2", PASSES),
        ("resnet50", ("dead_code_elimination",)),
        ("resnet50", ("fuse_conv_bn",)),
        ("resnet50", PASSES),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_a_training_step_through_dynamo(
    steps: dict[str, tuple[GraphModule, list[Any]]], name: str, passes: tuple[str, ...]
) -> None:
    module, inputs = steps[name]
    transformed, ledger = _run(module, *passes)
    assert ledger.performed() == 0
    expected, found = _step(module, inputs), _step(transformed, inputs)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=2e-4, atol=1e-5)
    assert any(gradient is not None for gradient in found[1])
    moved = [not torch.equal(a, b) for a, b in zip(found[2], _tensors(inputs), strict=True)]
    assert any(moved) == (name == "resnet50"), "the running statistics, and only they, are updated"


def _tensors(inputs: list[Any]) -> list[torch.Tensor]:
    return [t for t in inputs if isinstance(t, torch.Tensor)]


def test_a_training_step_through_autograds_graphs() -> None:
    model, example = models.gpt2()
    for module, inputs in aot(model.train(), example):
        transformed, ledger = _run(module, *PASSES)
        assert ledger.performed() == 0
        results = []
        for graph in (module, transformed):
            torch.manual_seed(5)
            results.append(graph(*copy.deepcopy(inputs)))
        torch.testing.assert_close(results[1], results[0], rtol=2e-4, atol=1e-5)


def test_buffers_of_an_exported_training_graph() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout()
    )
    module, _ = exported(model.train(), {"input": torch.randn(4, 3, 8, 8)})
    transformed, _ = _run(module, *PASSES)
    for _ in range(2):
        x = torch.randn(4, 3, 8, 8)
        results = []
        for graph in (module, transformed):
            torch.manual_seed(3)
            results.append(graph(input=x))
        torch.testing.assert_close(results[1], results[0])
    expected = {k.rpartition(".")[2]: v for k, v in module.named_buffers()}
    found = {k.rpartition(".")[2]: v for k, v in transformed.named_buffers()}
    assert int(found["num_batches_tracked"]) == 2
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(found[name], expected[name])

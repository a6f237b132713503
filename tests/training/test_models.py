"""Real models train remotely as they do with this process's own Inductor: losses and gradients.

Dropout is on: both draw the same random numbers from the same seed. What is compiled is small,
with every kind of layer; the largest difference that was seen is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import models
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import lazyfx

MODELS: Mapping[str, Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]] = {
    "bert": models.bert,
    "gpt2": models.gpt2,
    "t5": models.t5,
    "llama": models.llama,
    "vit": models.vit,
    "resnet50": models.resnet50,
}
SMALL = {"one-layer bert": lambda: models.bert(layers=1)}
STEPS = 5

Steps = list[tuple[torch.Tensor, dict[str, torch.Tensor]]]


def resized(example: Mapping[str, torch.Tensor], batch: int) -> dict[str, torch.Tensor]:
    return {k: v[torch.arange(batch) % len(v)].clone() for k, v in example.items()}


def train(name: str, backend: str, options: dict[str, Any] | None, *, dynamic: bool) -> Steps:
    """Five optimizer steps; the loss and every gradient of each."""
    torch._dynamo.reset()
    model, example = {**MODELS, **SMALL}[name]()
    model.train()
    compiled = torch.compile(model, backend=backend, options=options)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    steps: Steps = []
    for step in range(STEPS):
        torch.manual_seed(step)
        inputs = resized(example, 2 + step % 2 if dynamic else 2)
        if dynamic:
            for value in inputs.values():
                torch._dynamo.mark_dynamic(value, 0)
        optimizer.zero_grad()
        outputs = pytree.tree_leaves(compiled(**inputs))
        loss = sum(o.float().square().mean() for o in outputs if isinstance(o, torch.Tensor))
        loss.backward()
        gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
        steps.append((loss.detach().clone(), gradients))
        optimizer.step()
    return steps


def compare(server: Any, name: str, *, dynamic: bool) -> None:
    options = {"address": server.address, "on_error": "raise", "timeout": 580}
    remote = train(name, "lazyfx", options, dynamic=dynamic)
    report = lazyfx.backend_report()
    assert report.remote == len(report.graphs) > 0
    local = train(name, "inductor", None, dynamic=dynamic)
    largest = 0.0
    for (loss, gradients), (local_loss, local_gradients) in zip(remote, local, strict=True):
        assert gradients.keys() == local_gradients.keys()
        torch.testing.assert_close(loss, local_loss)
        torch.testing.assert_close(gradients, local_gradients)
        differences = [(gradients[k] - v).abs().max() for k, v in local_gradients.items()]
        largest = max(largest, float(torch.stack(differences).max()))
    kind = "dynamic" if dynamic else "static"
    text = f"{name} {kind}: {report.remote} graphs, largest gradient difference {largest:g}"
    sys.stdout.write(f"\n{text}\n")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_bert_trains_as_it_does_here(native_server: Any) -> None:
    compare(native_server, "one-layer bert", dynamic=False)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", MODELS)
def test_each_model_trains_as_it_does_here(native_server: Any, name: str, dynamic: bool) -> None:
    compare(native_server, name, dynamic=dynamic)

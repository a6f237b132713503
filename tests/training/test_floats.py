"""Floats that change from call to call cost no more compiles than they do locally."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.registry import lookup_backend
from training.counting import native_compiles

import lazyfx

Step = Callable[..., Any]


class LocalCompiles:
    """Inductor in this process; `count` graphs were compiled to the end."""

    def __init__(self) -> None:
        self.count = 0
        self._inductor: Any = lookup_backend("inductor")

    def __call__(self, module: Any, inputs: Any) -> Any:
        call = self._inductor(module, inputs)
        self.count += 1
        return call


def optimize(make: Step, schedule: Step, backend: Any, options: Any, steps: int) -> torch.Tensor:
    torch._dynamo.reset()
    weight = nn.Parameter(torch.linspace(-1, 1, 8))
    optimizer = make([weight])
    scheduler = schedule(optimizer)

    @torch.compile(backend=backend, options=options)
    def step() -> None:
        optimizer.step()

    for number in range(steps):
        weight.grad = torch.cos(torch.arange(8.0) * (number + 1))
        step()
        scheduler.step()
    return weight.detach()


def sgd(weights: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=0.1)


def adam(weights: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.Adam(weights, lr=0.1)


def decaying(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)


def stepwise(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)


@pytest.mark.parametrize(("make", "schedule", "steps"), [(adam, decaying, 10), (sgd, stepwise, 5)])
def test_an_optimizer_with_a_schedule(
    native_server: Any, make: Step, schedule: Step, steps: int
) -> None:
    local = LocalCompiles()
    expected = optimize(make, schedule, local, None, steps)
    before = native_compiles(native_server)
    options = {"address": native_server.address, "on_error": "raise"}
    found = optimize(make, schedule, "lazyfx", options, steps)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, optimize(make, schedule, "eager", None, steps))
    assert native_compiles(native_server) - before == local.count
    assert lazyfx.backend_report().remote == local.count


class Scaled(nn.Module):
    """Has a float that its caller changes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 4)
        self.scale = 0.5

    def forward(self, x: torch.Tensor, shift: float = 1.0) -> torch.Tensor:
        y = self.first(x)
        if self.scale > 10:
            y = y - shift
        return torch.tanh(y * self.scale + shift / (self.scale + 1)).sum() * self.scale


class Branching(Scaled):
    """What its float is used for must be a constant."""

    def forward(self, x: torch.Tensor, shift: float = 1.0) -> torch.Tensor:
        return (nn.functional.leaky_relu(self.first(x), self.scale) * shift).sum()


def gradients(model: Scaled, backend: Any, options: Any) -> list[torch.Tensor]:
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, options=options)
    found = []
    x = torch.linspace(-3, 3, 16).reshape(2, 8)
    for scale, shift in ((0.5, 1.0), (0.75, 1.0), (1.5, 0.25), (20.0, 0.5)):
        model.scale = scale
        model.zero_grad()
        loss = compiled(x, shift)
        loss.backward()
        found += [loss.detach(), model.first.weight.grad]
    return found


@pytest.mark.parametrize("kind", [Branching, pytest.param(Scaled, marks=pytest.mark.slow)])
def test_attributes_and_arguments(native_server: Any, kind: type[Scaled]) -> None:
    local = LocalCompiles()
    expected = gradients(kind(), local, None)
    before = native_compiles(native_server)
    options = {"address": native_server.address, "on_error": "raise"}
    found = gradients(kind(), "lazyfx", options)
    torch.testing.assert_close(found, expected)
    assert native_compiles(native_server) - before == local.count
    assert lazyfx.backend_report().remote == local.count

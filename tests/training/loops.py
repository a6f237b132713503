"""Training loops that the tests of the backend share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn


class Net(nn.Module):
    """A small net with dead code, a doubled subexpression and a buffer that training changes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, width)
        self.norm = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(torch.relu(self.first(x)))
        _ = y.exp()
        return self.last(torch.tanh(y) + torch.tanh(y))


def block(width: int) -> nn.Module:
    """What tensor parallelism is for: a wide layer that is split, and one that joins it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 4))


@dataclass
class Training:
    """What a training loop left behind."""

    losses: list[torch.Tensor] = field(default_factory=list)
    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)
    state: dict[str, torch.Tensor] = field(default_factory=dict)


def batches(sizes: Sequence[int] = (6, 6, 6)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 8, generator=generator) for size in sizes]


def train(
    model: nn.Module,
    inputs: Sequence[torch.Tensor],
    compiled: Callable[..., torch.Tensor] | None = None,
) -> Training:
    """Train with SGD (Adam blows up what is only rounding), one step for each input; `compiled` is what is called in its place."""
    call = model if compiled is None else compiled
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    done = Training()
    for x in inputs:
        optimizer.zero_grad()
        loss = call(x).square().mean()
        loss.backward()
        done.losses.append(loss.detach().clone())
        done.gradients.append({k: p.grad.clone() for k, p in model.named_parameters()})
        optimizer.step()
    done.state = {k: v.clone() for k, v in model.state_dict().items()}
    return done


def assert_same(ours: Training, theirs: Training) -> None:
    torch.testing.assert_close(ours.losses, theirs.losses)
    torch.testing.assert_close(ours.gradients, theirs.gradients)
    torch.testing.assert_close(ours.state, theirs.state)

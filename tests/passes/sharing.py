"""Models with attributes that share memory, or that are written where a graph does not look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


class Part(nn.Module):
    """Writes a part of a buffer, by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whole", torch.arange(12.0).view(3, 4).t())
        self.register_buffer("part", self.whole[1:3])

    def forward(self, x: Tensor) -> Any:
        before = self.whole.sum()
        self.part.add_(1)
        return before, self.whole.sum(), self.part * x.sum()


class Transposed(nn.Module):
    """Writes the transpose of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, bias=False).requires_grad_(False)
        nn.init.eye_(self.linear.weight)
        self.register_buffer("turned", self.linear.weight.data.t())

    def forward(self, x: Tensor) -> Any:
        one = self.linear(x)
        self.turned.mul_(2)
        return one, self.linear(x)


class Tied(nn.Module):
    """Writes a tensor with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones(4))
        self.register_buffer("other", self.one)

    def forward(self, x: Tensor) -> Any:
        early = self.other * 2
        self.one.add_(1)
        return early + x, self.other * 2 + x


class Constants(nn.Module):
    """Writes a part of a tensor that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = torch.arange(4.0)
        self.part = self.whole[:2]

    def forward(self, x: Tensor) -> Any:
        self.part.add_(1)
        return x + (self.whole * 2 + 3), self.whole * 2


class Statistics(nn.Module):
    """Reads what a batch normalization writes, by another name, before and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("mean", self.norm.running_mean)

    def forward(self, x: Tensor) -> Any:
        before = self.mean * 2
        y = self.norm(x)
        return before, y, self.mean * 2, self.norm.running_mean * 2


class Between(nn.Module):
    """Calls a layer before and after its weight is written."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4).requires_grad_(False)
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Any:
        one = self.linear(x)
        self.linear.weight.add_(1)
        return one * 2, self.linear(x) * 3


class Folded(nn.Module):
    """Writes a part of the weight of a layer that could be folded into its normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 1).requires_grad_(False)
        self.norm = nn.BatchNorm1d(3).requires_grad_(False).eval()
        nn.init.ones_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        self.register_buffer("part", self.conv.weight.data[:1])

    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.conv(x[:3, None].expand(3, 3, 4)))
        self.part.add_(1)
        return y


class Renormed(nn.Module):
    """An embedding that scales down rows of a weight which a projection uses too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(20.0).view(5, 4) + 1, requires_grad=False)
        self.projection = nn.Linear(4, 5, bias=False)
        self.projection.weight = self.weight

    def forward(self, x: Tensor) -> Any:
        one = self.projection(x)
        found = F.embedding(x[0].to(torch.int64), self.weight, max_norm=1.0)
        return one, found, self.projection(x)


MODELS = [Part, Transposed, Tied, Constants, Statistics, Between, Folded, Renormed]
X = torch.tensor([[1.0, 2.0, 0.0, 3.0], [0.0, 1.0, 1.0, 2.0], [2.0, 0.0, 1.0, 1.0]])


class Tracer(torch.fx.Tracer):
    """Traces accesses to buffers too, and keeps nested graphs."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, torch.fx.GraphModule) or super().is_leaf_module(module, path)


def symbolic(model: nn.Module) -> Any:
    return torch.fx.GraphModule(model, Tracer().trace(model))


def calls(model: Callable[..., Any]) -> list[Tensor]:
    """What two calls return."""
    with torch.no_grad():
        return [t.clone() for _ in range(2) for t in tree_leaves(model(X.clone()))]

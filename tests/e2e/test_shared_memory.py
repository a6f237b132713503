"""Attributes that share memory: whatever the passes, a write to one is seen through the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from passes.library import LIBRARY
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import lazyfx
from lazyfx.errors import LazyfxError
from lazyfx_server.passes import Registry

pytestmark = pytest.mark.long

SIMPLIFYING = (
    "functionalize,decompose,common_subexpression_elimination,constant_fold,dead_code_elimination"
)
OPTIONS = {
    "partition_by_support": '{supported=["add","mul","sum"]}',
    "quantize_weights": "{min_elements=1}",
    "split_module": "{max_nodes=1}",
}


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
    """Traces accesses to buffers too, which torch.fx otherwise performs while it traces."""

    proxy_buffer_attributes = True


def symbolic(model: nn.Module) -> Any:
    return torch.fx.GraphModule(model, Tracer().trace(model))


def exported(model: nn.Module) -> Any:
    return torch.export.export(model, (X,), strict=False)


def calls(model: Callable[..., Any]) -> list[Tensor]:
    """What two calls return."""
    with torch.no_grad():
        return [t.clone() for _ in range(2) for t in tree_leaves(model(X.clone()))]


def singles() -> list[str]:
    given = {"partition_min_cut", "replace_pattern"}  # need a joint graph, or patterns
    names = sorted({*Registry().names(), *LIBRARY} - given - {"analyze", "shape_propagation"})
    return [name + OPTIONS.get(name, "") for name in names]


FEW = [
    "functionalize",
    "inference",
    SIMPLIFYING,
    "split_module{max_nodes=1},common_subexpression_elimination,constant_fold,"
    "dead_code_elimination",
]


@pytest.mark.parametrize("capture", [symbolic, exported])
@pytest.mark.parametrize("make", MODELS)
def test_any_pass_keeps_what_two_calls_return(
    client: lazyfx.Client, make: Callable[[], nn.Module], capture: Callable[..., Any]
) -> None:
    traced = capture(make())
    expected = calls(traced.module() if capture is exported else traced)
    wrong = []
    for pipeline in [*FEW, *(singles() if capture is symbolic else ())]:
        try:
            found = calls(client.compile(capture(make()), pipeline))
            torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
        except LazyfxError as error:
            wrong.append(f"{pipeline}: {error}")
        except AssertionError as error:
            wrong.append(f"{pipeline}: {str(error).splitlines()[0]}")
    assert not wrong


@pytest.mark.parametrize("name", ["functionalize", "decompose"])
def test_a_graph_that_writes_shared_attributes_is_traced_again(
    client: lazyfx.Client, name: str
) -> None:
    assert client.compile(exported(Part()), name).report.passes[0].changed


def test_shared_memory_that_nothing_writes_does_not_matter(client: lazyfx.Client) -> None:
    class Read(Part):
        def forward(self, x: Tensor) -> Any:
            return self.whole.sum() + self.part * x.sum()

    report = client.compile(exported(Read()), "decompose").report
    assert report.passes[0].changed

"""Models that write inputs and buffers, and calls of them with inputs in one memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

X = torch.arange(8.0)
HOW = ("apart", "same", "shifted", "backwards", "state first", "state second")


class Written(nn.Module):
    """Reads one input after another is written."""

    def forward(self, a: Tensor, b: Tensor) -> Any:
        a.add_(1)
        return b * 2


class Both(nn.Module):
    """Writes two inputs by turns, one of them through views."""

    def forward(self, a: Tensor, b: Tensor) -> Any:
        early = b + 1
        row = a[1:3]
        row.mul_(3)
        middle = (b * a).sum()
        b.sub_(2)
        row.add_(b[:2].clone())
        return early, middle, a * 1, row * 1


class Listed(nn.Module):
    """Writes all tensors of a list, by one call."""

    def forward(self, a: Tensor, b: Tensor) -> Any:
        torch.ops.aten._foreach_pow_.Scalar([a, b], 2)
        torch.ops.aten._foreach_add_.ScalarList([b, a], [3.0, 5.0])
        return a + b


class Repeated(nn.Module):
    """Writes tensors of a list that are the same, or overlap."""

    def forward(self, a: Tensor, b: Tensor) -> Any:
        own = b * 2
        torch.ops.aten._foreach_mul_.Scalar([a, a, b], 2)
        torch.ops.aten._foreach_add_.ScalarList([own[:3], own[1:], own], [1.0, 3.0, 5.0])
        torch.ops.aten._foreach_add_.Scalar([a[:2], a[1:]], 1)
        return a + b, own


class Returned(nn.Module):
    """Returns views of what it wrote, which its caller writes afterwards."""

    def forward(self, a: Tensor, b: Tensor) -> Any:
        a.add_(1)
        half = a[:2]
        b.mul_(2)
        return half, b, a.view(2, 2), half + 1


class State(nn.Module):
    """Writes a buffer, between reads of its inputs, and an input, between reads of the buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.arange(4.0))

    def forward(self, a: Tensor, b: Tensor) -> Any:
        one = a * 2
        self.state.add_(1)
        two = a * 2
        three = self.state * 3
        b.mul_(2)
        return one.sum(), two.sum(), three.sum(), (self.state * 3).sum(), b


class Outputs(nn.Module):
    """Writes an input with `out=`."""

    def forward(self, a: Tensor, b: Tensor) -> Any:
        one = b.exp()
        torch.mul(a, 2, out=a)
        return one, b.exp()


MODELS = [Written, Both, Listed, Repeated, Returned, State, Outputs]


class Tracer(torch.fx.Tracer):
    """Traces accesses to buffers too."""

    proxy_buffer_attributes = True


def symbolic(model: nn.Module) -> Any:
    graph = Tracer().trace(model)
    mode = torch._subclasses.FakeTensorMode()
    for node in graph.find_nodes(op="placeholder"):
        with mode:
            node.meta["val"] = torch.empty(4)
    return torch.fx.GraphModule(model, graph)


def given(how: str, memory: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Two inputs."""
    whole = memory[:4]
    state = dict(module.named_buffers()).get("state", whole)
    return {
        "apart": (whole, memory[4:]),
        "same": (whole, whole),
        "shifted": (whole, memory[2:6]),
        "backwards": (memory[4:], memory[::2]),
        "state first": (state, whole),
        "state second": (whole, state),
    }[how]


def outcome(module: nn.Module, how: str) -> list[Tensor]:
    """What two calls return and leave behind, when the caller writes the results after each."""
    memory = X.clone()
    found = []
    with torch.no_grad():
        for _ in range(2):
            results = tree_leaves(module(*given(how, memory, module)))
            found += [t.clone() for t in results]
            for place, result in enumerate(results):
                result.add_(10 * place)
            found += [memory.clone(), *(t.clone() for t in results)]
    return [*found, *(t.clone() for t in module.buffers())]

"""What training jobs wrap models in: checkpoints, autocast, graph breaks, own backwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from training.loops import Net, assert_same, batches, train

import lazyfx


def remote_options(server: Any) -> dict[str, object]:
    return {"address": server.address, "on_error": "raise"}


class Cube(torch.autograd.Function):
    """Its backward is not the derivative of its forward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 2.5 * x * x * gradients[0]


class Wrapped(nn.Module):
    """A checkpointed block under autocast, a graph break, then a function with its own backward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.Sequential(nn.Linear(8, 20), nn.GELU(), nn.Linear(20, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = checkpoint(self.block, x, use_reentrant=False)
        torch._dynamo.graph_break()
        return self.head(Cube.apply(y.float()))


def test_checkpoint_autocast_graph_break_and_autograd_function(native_server: Any) -> None:
    model = Wrapped()
    options = remote_options(native_server)
    remote = train(model, batches(), torch.compile(model, backend="lazyfx", options=options))
    report = lazyfx.backend_report()
    assert report.remote == len(report.graphs) == 2
    torch._dynamo.reset()
    local_model = Wrapped()
    local = train(local_model, batches(), torch.compile(local_model, backend="inductor"))
    assert_same(remote, local)


def test_passes_run_before_inductor(native_server: Any) -> None:
    model = Net(width=52)
    options = {
        **remote_options(native_server),
        "passes": ["dead_code_elimination", "common_subexpression_elimination"],
    }
    remote = train(model, batches(), torch.compile(model, backend="lazyfx", options=options))
    assert lazyfx.backend_report().remote == 1
    assert_same(remote, train(Net(width=52), batches()))


class WithFloats(nn.Module):
    """Its scale and its norm's epsilon are floats, which dynamic=True makes inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = 0.5
        self.first = nn.Linear(8, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.first(x) * self.scale)


def test_floats_of_modules_with_every_size_dynamic(native_server: Any) -> None:
    model = WithFloats()
    options = remote_options(native_server)
    compiled = torch.compile(model, backend="lazyfx", dynamic=True, options=options)
    remote = train(model, batches((6, 9, 6)), compiled)
    assert [graph.outcome for graph in lazyfx.backend_report().graphs] == ["remote"]
    assert_same(remote, train(WithFloats(), batches((6, 9, 6))))


def test_inputs_that_share_memory(native_server: Any) -> None:
    def half_sums(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x.sin() + y.cos()).sum()

    whole = torch.randn(8, 4, requires_grad=True)
    compiled = torch.compile(half_sums, backend="lazyfx", options=remote_options(native_server))
    (found,) = torch.autograd.grad(compiled(whole[:4], whole[2:6]), whole)
    (expected,) = torch.autograd.grad(half_sums(whole[:4], whole[2:6]), whole)
    assert lazyfx.backend_report().remote == 1
    torch.testing.assert_close(found, expected)

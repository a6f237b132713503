"""What training jobs wrap models in: checkpoints, autocast, graph breaks, DDP, FSDP2."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from training.loops import Net, assert_same, batches, train

import lazyfx


def remote_options(server: Any) -> dict[str, object]:
    return {"address": server.address, "on_error": "raise"}


class Wrapped(nn.Module):
    """A checkpointed block under autocast, a graph break, then another graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.Sequential(nn.Linear(8, 20), nn.GELU(), nn.Linear(20, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = checkpoint(self.block, x, use_reentrant=False)
        torch._dynamo.graph_break()
        return self.head(y.float())


def test_checkpoint_autocast_and_graph_break(native_server: Any) -> None:
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

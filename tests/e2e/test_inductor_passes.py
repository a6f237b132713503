"""Inductor's passes in the confined workers of a real server, which may not compile or open files."""

from __future__ import annotations

import torch
from passes.captures import aot, dynamo
from passes.running import assert_same
from torch import nn

import lazyfx


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.cat(torch.split(x, 1))
        return torch.cat([layer(rows) for layer in self.layers], 1).sum(1)


def test_through_a_server(client: lazyfx.Client) -> None:
    torch.manual_seed(0)
    model, example = Model(), {"x": torch.randn(3, 4)}
    module, inputs = dynamo(model, example)
    passes = ["inductor_pre_grad", "batch_fusion", "dead_code_elimination"]
    remote = client.compile(module, passes, verify=True)
    rows = {row.name: row for row in remote.report.passes}
    assert "merge_getitem_cat_pass" in rows["inductor_pre_grad"].note
    assert rows["batch_fusion"].note == "linear"
    assert remote.report.recompiles.performed == 0
    assert_same(module, remote.graph_module(), *inputs)
    for graph, given in aot(model, example):
        remote = client.compile(graph, ["inductor_joint_graph", "inductor_post_grad"], verify=True)
        assert remote.report.recompiles.performed == 0
        assert_same(graph, remote.graph_module(), *given)

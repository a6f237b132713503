"""Passes inside the bodies of higher-order operators, and what is counted there."""

from __future__ import annotations

import pytest
import torch
from passes.captures import dynamo
from passes.running import assert_same, run
from torch import nn
from torch.fx import GraphModule
from torch.utils.checkpoint import checkpoint

from lazyfx_server.passes import Registry
from lazyfx_server.passes.analysis.walk import graph_modules

registry = Registry()


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def block(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layer(x).reshape(-1, 4) * 1
        return torch.relu(h) + torch.relu(h)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.block, x, use_reentrant=False) + 1


@pytest.fixture(scope="module")
def nested() -> tuple[GraphModule, list[torch.Tensor]]:
    return dynamo(Checkpointed(), {"x": torch.randn(3, 4, requires_grad=True)})


def body(module: GraphModule) -> GraphModule:
    return graph_modules(module)[1]


@pytest.mark.parametrize(
    "name",
    ["common_subexpression_elimination", "no_op_elimination", "convert_dtype",
     "normalize_arguments", "sink_views"],
)  # fmt: skip
def test_bodies_are_worked_on_too(nested, name: str) -> None:
    module, inputs = nested
    ran = run(module, registry.create(name))
    before = [node.format_node() for node in body(module).graph.nodes]
    after = [node.format_node() for node in body(ran.module).graph.nodes]
    assert (before != after) == ran.changed
    if name != "convert_dtype":
        assert_same(module, ran.module, *inputs)


def test_work_in_bodies_is_counted(nested) -> None:
    ran = run(nested[0], registry.create("analyze"))
    assert ran.runs[0].data["flops"] == 2 * 3 * 4 * 4


def test_what_passes_make_in_bodies_gets_its_shape(nested) -> None:
    module, _ = nested
    forgotten = run(module).module
    made = next(n for n in body(forgotten).graph.nodes if n.target is torch.relu)
    made.meta = {}
    ran = run(forgotten, registry.create("shape_propagation"), in_place=True)
    assert ran.changed
    found = next(n for n in body(ran.module).graph.nodes if n.target is torch.relu)
    assert found.meta["val"].shape == (3, 4)

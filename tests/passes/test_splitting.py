"""Graphs cut where an annotation or the module changes: found by the client, cut by the server."""

from __future__ import annotations

import pytest
import torch
from passes.captures import dynamo, exported
from passes.running import assert_same, run
from torch import nn
from torch.fx import GraphModule, symbolic_trace
from torch.fx.traceback import annotate, preserve_node_meta

import lazyfx
from lazyfx.errors import LazyfxError
from lazyfx_server.passes import Registry


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x).tanh()


def parts(module: GraphModule) -> list[list[str]]:
    found = [c for name, c in module.named_children() if name.startswith("submod_")]
    return [[n.name for n in part.graph.nodes if n.op.startswith("call_")] for part in found]


def split(module: GraphModule, spec: lazyfx.PassSpec) -> GraphModule:
    return run(module, Registry().create(spec.name, spec.options)).module


@pytest.mark.parametrize("capture", ["export", "dynamo"])
def test_a_part_for_each_module(capture: str) -> None:
    x = torch.randn(3, 4)
    if capture == "export":
        module, (kwargs,) = exported(Model(), {"x": x})
        given: tuple[torch.Tensor, ...] = ()
    else:
        module, inputs = dynamo(Model(), {"x": x})
        given, kwargs = tuple(inputs), {}
    cut = split(module, lazyfx.split_by(module, lazyfx.in_modules("layers.*", "head")))
    assert [len(part) for part in parts(cut)] == [2, 2, 2, 2]
    assert_same(module, cut, *given, **kwargs)
    assert len(parts(split(module, lazyfx.split_by(module, lazyfx.in_modules("layers.?"))))) == 3


def test_a_part_for_each_annotation() -> None:
    class Annotated(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with annotate({"stage": 0}):
                x = torch.relu(x + 1)
            x = x * 2
            with annotate({"stage": 1}):
                return torch.sin(x)

    with preserve_node_meta():
        program = torch.export.export(Annotated(), (torch.randn(3),))
    module = program.module(check_guards=False)
    cut = split(module, lazyfx.split_by(program, "stage"))
    assert [len(part) for part in parts(cut)] == [3, 1]
    assert_same(module, cut, torch.randn(3))


def test_a_graph_that_says_nothing_is_refused() -> None:
    with pytest.raises(LazyfxError, match="'stage' does not change"):
        lazyfx.split_by(symbolic_trace(lambda x: x + 1), "stage")

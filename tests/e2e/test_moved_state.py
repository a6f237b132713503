"""State keeps its owner through passes that move nodes from graph to graph."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, symbolic_trace

import lazyfx
from lazyfx.errors import InvalidRequestError


class ReturnsItsState(nn.Module):
    """Attributes as outputs: a parameter, a buffer, a part of a leaf module, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))
        self.register_buffer("shift", torch.randn(4))
        self.lift = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.lift(x).relu() * self.scale + self.shift
        return y, self.scale, {"shift": self.shift, "weight": self.lift.weight}, self.scale


class OnlyState(nn.Module):
    """Some of its outputs are computed from nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2))

    def forward(self, x: torch.Tensor) -> Any:
        return (self.a + 1) * 2, self.b, x.sin().cos()


class Shared(nn.Module):
    """One tensor under two names, and one module called twice and read from."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm1d(4).eval()

    def forward(self, x: torch.Tensor) -> Any:
        x = self.norm(self.one(x)).relu()
        return self.norm(self.two(x).tanh()) + self.one.bias


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = symbolic_trace(Shared())
        self.outer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(self.outer(x).relu()).sigmoid()


class _KeepsGraphs(torch.fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, GraphModule) or super().is_leaf_module(module, name)


def _nested() -> GraphModule:
    module = Nested()
    return GraphModule(module, _KeepsGraphs().trace(module))


def _exported() -> GraphModule:
    return torch.export.export(Shared().eval(), (torch.randn(3, 4),)).module(check_guards=False)  # type: ignore[return-value]


GRAPHS = {
    "sequential": lambda: symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
    "deep": lambda: symbolic_trace(nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.GELU()),
                                                 nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)))),
    "returns-its-state": lambda: symbolic_trace(ReturnsItsState()),
    "only-state": lambda: symbolic_trace(OnlyState()),
    "shared": lambda: symbolic_trace(Shared().eval()),
    "nested": _nested,
    "exported": _exported,
}  # fmt: skip

CUTS = {
    "each call": lazyfx.pass_spec("split_module", max_nodes=1),
    "two calls": lazyfx.pass_spec("split_module", max_nodes=2),
    "at nodes": lazyfx.pass_spec("split_module", at=(2, 3)),
    "by support": lazyfx.pass_spec("partition_by_support", supported=("relu", "nn.ReLU", "tanh")),
}


# Cut in other tests, without a pattern, or in another arithmetic.
_LEFT_OUT = ("split_module", "replace_pattern", "quantize_weights", "convert_dtype")


def _check(client: lazyfx.Client, module: GraphModule, passes: Any, folder: Any) -> None:
    x = torch.randn(3, 4)
    expected = module(x)
    remote = client.compile(module, passes=passes)

    def same(found: Any) -> None:
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)

    same(remote(x))
    rebuilt = remote.graph_module()
    same(rebuilt(x))
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    assert {id(tensor) for tensor in rebuilt.parameters()} <= own or not own
    assert "def forward" in remote.code
    remote.save_pickle(folder / "module.pkl")
    same(pickle.loads((folder / "module.pkl").read_bytes())(x))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_state_of_parts_is_the_callers(
    client: lazyfx.Client, graph: str, cut: str, tmp_path: Any
) -> None:
    _check(client, GRAPHS[graph](), [CUTS[cut]], tmp_path)


@pytest.mark.parametrize("graph", ["returns-its-state", "nested", "exported"])
def test_state_through_every_pass(client: lazyfx.Client, graph: str, tmp_path: Any) -> None:
    names = [p.name for p in client.passes() if p.name not in _LEFT_OUT]
    for name in names:
        for passes in ([name], [name, CUTS["each call"]]):
            try:
                _check(client, GRAPHS[graph](), passes, tmp_path)
            except InvalidRequestError:
                break  # options that have no default


def test_parts_have_their_callers_names(client: lazyfx.Client) -> None:
    module = symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    cut = client.compile(module, passes=[CUTS["each call"]]).graph_module()
    assert sorted(cut.state_dict()) == ["submod_0.0.bias", "submod_0.0.weight"]

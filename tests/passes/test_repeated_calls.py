"""Equal calls are computed once, and nothing of what is known of values differs for that."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from passes.captures import dynamo
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from lazyfx_server.passes import PassContext
from lazyfx_server.passes.analysis.fake_calls.repeated_calls import RepeatedCalls
from lazyfx_server.passes.analysis.fake_run import FakeRun
from lazyfx_server.passes.builtin.inspecting.shape_propagation import ShapePropagation


class _Layers(nn.Module):
    def __init__(self, forward: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(4, 4)) for _ in range(3))
        self.layer = forward

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = self.layer(x, weight)
        return x


def _plain(x: Tensor, weight: Tensor) -> Tensor:
    return torch.relu(torch.matmul(x, weight) + x).softmax(-1)


def _with_views(x: Tensor, weight: Tensor) -> Tensor:
    one, other = torch.matmul(x, weight).split(2, -1)
    return torch.cat([other.transpose(-1, -2).transpose(-1, -2) * 2, one], -1)


def _with_writes(x: Tensor, weight: Tensor) -> Tensor:
    y = torch.matmul(x, weight)
    y.add_(1)
    y[0].mul_(2)
    return y.relu_() + torch.nn.functional.dropout(x, 0.5, True)


def _with_modes(x: Tensor, weight: Tensor) -> Tensor:
    y = torch.matmul(x, weight)
    with torch.no_grad():
        z = torch.matmul(x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return y + z + torch.matmul(x, weight).float()


@pytest.mark.parametrize("layer", [_plain, _with_views, _with_writes, _with_modes])
@pytest.mark.parametrize("grad", [True, False])
def test_metadata_is_the_same(
    layer: Any,
    grad: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _Layers(layer).requires_grad_(grad)
    module, _ = dynamo(model, {"x": torch.ones(2, 4, 4)})
    found = [0]

    def find(self: RepeatedCalls, key: Any) -> Any:
        value = original(self, key)
        found[0] += value is not None
        return value

    original = RepeatedCalls.find
    monkeypatch.setattr(RepeatedCalls, "find", find)
    repeating = _described(module)
    repeated = found[0]
    monkeypatch.setattr(RepeatedCalls, "key", lambda *_: None)
    assert repeating == _described(module)
    assert (repeated, found[0]) == (repeated, repeated)
    # Switches of modes end what is remembered.
    assert repeated >= 2 or layer is _with_modes


def _described(module: GraphModule) -> list[Any]:
    """What is known of each value after everything but the inputs was forgotten."""
    module = copy.deepcopy(module)
    for node in module.graph.nodes:
        if node.op.startswith("call_"):
            node.meta.clear()
    assert ShapePropagation().run(module, PassContext()).changed
    storages: dict[int, int] = {}
    rows: list[Any] = []
    for node in module.graph.nodes:
        for value in tree_leaves(node.meta.get("val")):
            if not isinstance(value, Tensor):
                rows.append((node.name, value))
                continue
            storage = storages.setdefault(value.untyped_storage()._cdata, len(storages))
            place = value.stride(), value.storage_offset(), storage, value.requires_grad
            rows.append((node.name, value.dtype, value.device, tuple(value.shape), *place))
    return rows


@pytest.mark.parametrize(
    "write",
    [
        lambda a, weight: a.unsqueeze_(0),
        lambda a, weight: a.t_(),
        lambda a, weight: a.resize_(2, 2),
        lambda a, weight: a.add_(weight),
    ],
    ids=["unsqueeze_", "t_", "resize_", "add_"],
)
def test_a_result_that_is_written_later_is_remembered_as_it_was(write: Any) -> None:
    def layers(x: Tensor, weight: Tensor) -> Any:
        a = torch.relu(x)
        write(a, weight)
        return torch.relu(x) * 1

    x, weight = torch.ones(2, 3), torch.ones(2, 3, requires_grad=True)
    module = torch.fx.symbolic_trace(layers)
    expected = module(x, weight)
    run = FakeRun(module, FakeTensorMode(), repeat=True)
    for node, value in zip(module.graph.find_nodes(op="placeholder"), (x, weight), strict=True):
        node.meta["val"] = run.mode.from_tensor(value)
    with run.active():
        for node in module.graph.nodes:
            if node.op != "output":
                found = run.compute(node)
    described = found.shape, found.stride(), found.requires_grad
    assert described == (expected.shape, expected.stride(), expected.requires_grad)


def test_of_one_target_some_calls_may_change_the_state() -> None:
    root = nn.Module()
    root.pure = torch.fx.symbolic_trace(lambda x: x * 2)
    root.writing = torch.fx.symbolic_trace(lambda x: x.add_(1))
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    for name in ("writing", "pure"):
        graph.call_function(torch.ops.higher_order.wrap, (graph.get_attr(name), x))
    graph.output(x)
    GraphModule(root, graph)
    assert RepeatedCalls(graph, FakeTensorMode())._has_switches

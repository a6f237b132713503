"""Calls with their arguments by name compute what they computed."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from passes.captures import dynamo
from passes.running import assert_same, run
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

from lazyfx_server.passes.builtin.simplifying.normalize_arguments import NormalizeArguments

aten = torch.ops.aten
normalize = NormalizeArguments()


def call(target: Callable[..., Any], *args: Any, **kwargs: Any) -> GraphModule:
    """A graph of one call; "x" and "y" stand for two inputs."""
    graph = Graph()
    inputs = {name: graph.placeholder(name) for name in "xy"}
    mode = FakeTensorMode()
    for node in inputs.values():
        node.meta["val"] = mode.from_tensor(torch.ones(4, 4))

    def given(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(given, value))
        return inputs.get(value, value) if isinstance(value, str) else value

    node = graph.call_function(
        target, tuple(map(given, args)), {k: given(v) for k, v in kwargs.items()}
    )
    graph.output(node)
    return GraphModule(nn.Module(), graph)


def the_call(module: GraphModule) -> Node:
    return next(n for n in module.graph.nodes if n.op == "call_function")


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "named"),
    [
        (aten.add.Tensor, ("x", "y"), {}, {"self": "x", "other": "y", "alpha": 1}),
        (aten.add.Tensor, ("x",), {"other": "y", "alpha": 2}, None),
        (aten.sum.dim_IntList, ("x", [1]), {}, None),
        (aten.cat.default, (["x", "y"],), {}, {"tensors": ["x", "y"], "dim": 0}),
        (torch.flatten, ("x", 0), {}, {"input": "x", "start_dim": 0, "end_dim": -1}),
        (torch.add, ("x", "y"), {}, {"input": "x", "other": "y", "alpha": 1}),
        (torch.transpose, ("x", 0, 1), {}, None),
        (F.softmax, ("x", -1), {}, None),
        (F.layer_norm, ("x", (4,)), {}, None),
        (F.relu, ("x",), {}, {"input": "x", "inplace": False}),
        (F.linear, ("x", "y"), {}, {"input": "x", "weight": "y"}),
        (F.max_pool2d, ("x", 2), {}, None),
    ],
)
def test_calls(target: Any, args: Any, kwargs: Any, named: Any) -> None:
    module = call(target, *args, **kwargs)
    ran = run(module, normalize)
    node = the_call(ran.module)
    assert node.args == ()
    if named is not None:
        assert torch.fx.node.map_arg(dict(node.kwargs), lambda n: n.name) == named
    x = torch.randn(1, 4, 4) if target is F.max_pool2d else torch.randn(4, 4)
    assert_same(module, ran.module, x, torch.randn(4, 4))
    assert not run(ran.module, normalize).changed


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (operator.add, ("x", "y")),
        (getattr, ("x", "shape")),
        (torch.einsum, ("ij,jk->ik", "x", "y")),
        (operator.getitem, ("x", 0)),
        (torch.tensor, (24.0,)),
        (torch.as_tensor, (3,)),
    ],
)
def test_what_has_no_certain_signature_stays(target: Any, args: Any) -> None:
    module = call(target, *args)
    ran = run(module, normalize)
    assert not ran.changed
    assert len(the_call(ran.module).args) == len(args)


def test_an_argument_named_by_a_python_keyword_stays() -> None:
    module = call(aten.uniform.default, "x", 0.0, 1.0)
    assert not run(module, normalize).changed


def test_defaults_may_stay_away() -> None:
    module = call(aten.add.Tensor, "x", "y")
    node = the_call(run(module, NormalizeArguments(fill_defaults=False)).module)
    assert list(node.kwargs) == ["self", "other"]


def test_two_spellings_become_one() -> None:
    one = the_call(run(call(F.relu, "x"), normalize).module)
    other = the_call(run(call(F.relu, "x", inplace=False), normalize).module)
    assert dict(one.kwargs).keys() == dict(other.kwargs).keys()
    assert one.kwargs["inplace"] is other.kwargs["inplace"] is False


def test_the_code_of_a_normalized_graph_runs() -> None:
    module = call(aten.convolution.default, "x", "y", None, [1], [0], [1], False, [0], 1)
    ran = run(module, normalize)
    assert_same(module, ran.module, torch.randn(1, 2, 5), torch.randn(3, 2, 2))


@pytest.mark.parametrize("function", [torch.pow, torch.float_power, torch.remainder, torch.xlogy])
def test_a_number_in_a_tensor_s_place_keeps_its_place(function: Any) -> None:
    """torch names the operand `input` where it is a tensor only."""

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return function(2, torch.abs(x))

    x = torch.randn(3, 4)
    module, _ = dynamo(Model(), {"x": x})
    ran = run(module, normalize)
    assert [n.args[0] for n in ran.module.graph.nodes if n.target is function] == [2]
    assert_same(module, ran.module, x)

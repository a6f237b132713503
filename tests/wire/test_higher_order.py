"""Nested graphs and the context calls that captures write down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import captures
import pytest
import torch
from checks import assert_round_trip
from torch import Tensor, nn
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
from torch.nn.attention import SDPBackend, sdpa_kernel

from lazyfx.errors import DecodeError, UnsupportedGraphError
from lazyfx.shared import wire
from lazyfx.v1 import graph_pb2 as pb


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos() * 2


class Around(nn.Module):
    """Runs a function that may use a linear layer."""

    def __init__(self, function: Callable[[nn.Linear, Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.linear, x)


def cond(linear: nn.Linear, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x: linear(x) + 1, lambda x: x.sin() - linear.bias, (x,))


def while_loop(linear: nn.Linear, x: Tensor) -> Any:
    def step(i: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return i + 1, y.sin()

    return torch._higher_order_ops.while_loop(lambda i, y: i < 3, step, (torch.tensor(0), x))


def scan(linear: nn.Linear, x: Tensor) -> Any:
    from torch._higher_order_ops.scan import scan as run

    return run(lambda carry, y: (carry + y, (carry * y).clone()), torch.zeros(8), x)


def checkpoint(linear: nn.Linear, x: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint as run

    return run(lambda y: linear(y).relu(), x, use_reentrant=False)


def no_grad(linear: nn.Linear, x: Tensor) -> Tensor:
    y = linear(x)
    with torch.no_grad():
        z = y.sin() * 2
    return y + z


def autocast(linear: nn.Linear, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = linear(x)
    return y.float() + 1


def autograd_function(linear: nn.Linear, x: Tensor) -> Tensor:
    return Double.apply(linear(x))


def vmap(linear: nn.Linear, x: Tensor) -> Tensor:
    return torch.vmap(lambda row: row.sin().sum() + linear(row))(x)


def gradient(linear: nn.Linear, x: Tensor) -> Tensor:
    return torch.func.grad(lambda y: (linear(y) ** 2).sum())(x)


def jvp(linear: nn.Linear, x: Tensor) -> Any:
    return torch.func.jvp(lambda y: (y**2).sum(), (x,), (x,))


def flex_attention(linear: nn.Linear, x: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention as attend

    q = x.reshape(1, 1, 4, 8)
    return attend(q, q, q, score_mod=lambda score, b, h, i, j: score + i - j)


def attention_backend(linear: nn.Linear, x: Tensor) -> Tensor:
    q = x.reshape(1, 1, 4, 8)
    with sdpa_kernel([SDPBackend.MATH]):
        return nn.functional.scaled_dot_product_attention(q, q, q)


def nested_region(linear: nn.Linear, x: Tensor) -> Tensor:
    region = torch.compiler.nested_compile_region(lambda y: linear(y).cos())
    return region(region(x))


def in_place(linear: nn.Linear, x: Tensor) -> Any:
    y = x.clone()
    y[1:3] = 0
    y += 1
    y[..., 0] *= 3
    return y, {"sum": y.sum(), "list": [y.mean(), None]}


def indexed_by_tensors(linear: nn.Linear, x: Tensor) -> Tensor:
    """As masks are made for batches: an index that is a tensor of no dimensions."""
    with TransformGetItemToIndex():
        return torch.vmap(lambda i: linear(x)[i])(torch.arange(4)) * x


def data_dependent(linear: nn.Linear, x: Tensor) -> Tensor:
    return x[x > 0].sum()


def shape_arithmetic(linear: nn.Linear, x: Tensor) -> Tensor:
    rows, columns = x.shape
    return x.view(columns, rows) * x.size(0) + columns**0.5


CASES = {
    "export": [
        cond,
        while_loop,
        scan,
        no_grad,
        autocast,
        flex_attention,
        jvp,
        in_place,
        indexed_by_tensors,
    ],
    "dynamo": [
        cond,
        while_loop,
        checkpoint,
        autocast,
        no_grad,
        autograd_function,
        vmap,
        gradient,
        jvp,
        flex_attention,
        attention_backend,
        nested_region,
        in_place,
        data_dependent,
    ],
    "dynamic": [shape_arithmetic, scan, vmap],
    "aot": [cond, autograd_function, nested_region],
}


@pytest.mark.parametrize(
    ("way", "function"),
    [(way, function) for way, functions in CASES.items() for function in functions],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
@torch._dynamo.config.patch(capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True)
def test_nested_graphs_and_contexts_come_back(way: str, function: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    example = {"x": torch.randn(4, 8, requires_grad=way == "aot")}
    run = {
        "export": captures.exported,
        "dynamo": captures.dynamo,
        "dynamic": lambda model, inputs: captures.dynamo(model, inputs, dynamic=True),
        "aot": captures.aot,
    }[way]
    try:
        found = run(Around(function), example)
    except AssertionError as error:
        if (way, function) == ("export", jvp) and "Expected FakeTensor" in str(error):
            pytest.skip("torch 2.11 and 2.12 cannot export it")
        raise
    assert found
    for capture in found:
        assert_round_trip(capture)


def test_a_called_graph_module_is_a_nested_graph() -> None:
    inner = torch.fx.symbolic_trace(lambda x: x.relu() + 1)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_module("inner", (graph.call_module("inner", (x,)),)))
    root = nn.Module()
    root.inner = inner
    module = torch.fx.GraphModule(root, graph)
    encoded = assert_round_trip(captures.Capture("nested", module, (torch.randn(3),), {}))
    assert len(encoded.presentation.graphs) == 2


MOD_INDEX = "torch._dynamo._trace_wrapped_higher_order_op.ModIndex"


def indexed() -> torch.fx.GraphModule:
    """A graph that calls an autograd function of torch's by its name."""
    [capture] = captures.exported(Around(indexed_by_tensors), {"x": torch.randn(4, 8)})
    return capture.module


@pytest.mark.parametrize("name", ["os.system", f"{MOD_INDEX}s", "this.s", "ModIndex", ""])
def test_no_other_autograd_function_is_called(name: str) -> None:
    body = pb.GraphBody.FromString(wire.encode(indexed()).body)
    body.strings[list(body.strings).index(MOD_INDEX)] = name
    with pytest.raises(DecodeError, match="may not call the autograd function"):
        wire.decode(body.SerializeToString(deterministic=True))


def test_the_name_of_an_autograd_function_is_a_literal() -> None:
    module = indexed()
    [call] = [n for n in module.graph.nodes if n.target is torch.ops.higher_order.flat_apply]
    x = next(iter(module.graph.nodes))
    given = call.args
    for args, kwargs in (
        ((*given[:2], x, *given[3:]), {}),
        (given[:2], {}),
        ((), {"func": given[0], "in_spec": given[1]}),
    ):
        call.args, call.kwargs = args, kwargs
        with pytest.raises(UnsupportedGraphError, match="the literal name of an autograd function"):
            wire.encode(module)
    call.args, call.kwargs = (torch.ops.aten.sin, *given[1:2], x), {}
    assert wire.encode(module).digest


def test_what_calls_an_autograd_function_is_no_part_of_a_structure() -> None:
    body = pb.GraphBody.FromString(wire.encode(indexed()).body)
    [spec] = [
        row.tree_spec
        for row in body.graphs[0].attributes
        if row.tree_spec.kind == pb.TREE_SPEC_KIND_AUTOGRAD_FUNCTION
    ]
    inner = pb.TreeSpec(kind=pb.TREE_SPEC_KIND_TUPLE, children=[spec])
    for wrong in (inner, pb.TreeSpec(kind=spec.kind, children=[pb.TreeSpec(kind=1)])):
        spec.CopyFrom(wrong)
        with pytest.raises(DecodeError, match=r"kind|structure"):
            wire.decode(body.SerializeToString(deterministic=True))

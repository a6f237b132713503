"""Rarer things that captures write into graphs: each comes back and computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from lazyfx.shared import wire
from zoo import captures
from zoo.captures import Capture
from zoo.check import pass_through


class Around(nn.Module):
    """Runs a function that may use a linear layer."""

    def __init__(self, function: Callable[[nn.Linear, Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.linear, x)


@torch.library.custom_op("lazyfx_coverage::twice_", mutates_args={"x"})
def twice_(x: Tensor) -> None:
    x.mul_(2)


def mapped(linear: nn.Linear, x: Tensor) -> Tensor:
    from torch._higher_order_ops.map import map as run

    return run(lambda row, bias: row.sin() + bias, x, linear.bias)


def scanned(linear: nn.Linear, x: Tensor) -> Any:
    from torch._higher_order_ops.associative_scan import associative_scan

    return associative_scan(lambda a, b: a + b, linear(x), 0, combine_mode="generic")


def mutated(linear: nn.Linear, x: Tensor) -> Tensor:
    y = x.clone()
    torch.ops.lazyfx_coverage.twice_(y)
    return y + 1


def regions(linear: nn.Linear, x: Tensor) -> Tensor:
    region = torch.compiler.nested_compile_region(lambda y: linear(y).relu())
    return region(region(x))


def second_derivative(linear: nn.Linear, x: Tensor) -> Tensor:
    return torch.func.hessian(lambda y: linear(y).pow(3).sum())(x[0])


def lists_of_tensors(linear: nn.Linear, x: Tensor) -> Any:
    return torch._foreach_add([x, linear(x)], 1), torch._foreach_norm([x])


def assigned_data(linear: nn.Linear, x: Tensor) -> Tensor:
    linear.bias.data = linear.bias.data.to(torch.float32)
    return linear(x)


def of_numpy(linear: nn.Linear, x: Tensor) -> Any:
    array = x.detach().numpy()
    return linear(x) * float(np.sqrt(16)), np.sin(array) + array.reshape(-1)[0]


def of_numpys_modules(linear: nn.Linear, x: Tensor) -> Any:
    array = x.detach().numpy()
    # torch.linalg.norm and an alias of another name in torch; drawn as SpecAugment draws.
    lengths = np.linalg.norm(array, axis=1, keepdims=True) + np.power(array, 2)
    spectrum = np.fft.rfft(array, norm="ortho").real + np.float32(x.shape[0])
    mask = np.random.rand(x.shape[0]) < 0.5
    lengths[mask] = np.random.randint(0, 3, size=(1,))
    return linear(x), lengths, spectrum, mask


def fields(linear: nn.Linear, x: Tensor) -> Any:
    found = torch.linalg.eigh(x.t() @ x)
    return linear(x).max(dim=1).values, torch.topk(x, 2).indices, found.eigenvalues


def modes(linear: nn.Linear, x: Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = linear(x)
    with torch.inference_mode():
        z = x * 2
    with torch.no_grad():
        return y, z, x.sum()


def formats(linear: nn.Linear, x: Tensor) -> Any:
    picture = x.view(2, 2, 2, 4).contiguous(memory_format=torch.channels_last)
    small = x.to(torch.float8_e4m3fn).to(torch.float32)
    return picture, small, torch.zeros(2, dtype=torch.complex64, device=x.device), x.new_ones(3)


def rotations(linear: nn.Linear, x: Tensor) -> Tensor:
    return torch.view_as_real(torch.polar(x.abs(), x) * torch.view_as_complex(x.view(4, 8, 1)
                              .expand(4, 8, 2).contiguous()))  # fmt: skip


def random(linear: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.dropout(linear(x), 0.5, training=True) + torch.rand_like(x)


def legacy_constructor(linear: nn.Linear, x: Tensor) -> Tensor:
    return x.new(x.shape[0], 8).fill_(2.0) + linear(x)


# Without dynamo's graphs in training: torch does not run a nested region of those by itself.
WAYS = {**captures.WAYS, "aot": captures.aot}
CASES = [
    ("export", mapped), ("dynamo", mapped), ("export", scanned), ("dynamo", scanned),
    ("export", mutated), ("dynamo", mutated), ("aot", regions), ("dynamo", second_derivative),
    ("dynamo", lists_of_tensors), ("dynamo", assigned_data), ("dynamo", of_numpy),
    ("dynamic", of_numpys_modules),
    ("dynamo", modes), ("export", modes), ("symbolic", fields),
    ("dynamic", formats), ("aot", formats),
    ("export", rotations), ("dynamic", random), ("aot", random), ("dynamic", legacy_constructor),
]  # fmt: skip


@pytest.mark.parametrize(
    ("way", "function"), CASES, ids=lambda v: v if isinstance(v, str) else v.__name__
)
def test_what_captures_write_comes_back(way: str, function: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    captured = WAYS[way](Around(function), {"x": torch.randn(4, 8, requires_grad=way == "aot")})
    assert captured
    assert all(pass_through(capture).nodes for capture in captured)


def test_an_operator_that_mutates_is_functionalized_and_comes_back() -> None:
    program = torch.export.export(Around(mutated), (torch.randn(4, 8),)).run_decompositions()
    module = program.module(check_guards=False)
    names = [str(node.target) for node in module.graph.nodes]
    assert any("auto_functionalized" in name for name in names)
    assert pass_through(Capture("decomposed", module, (torch.randn(4, 8),))).compared


DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8,
    torch.int16, torch.int32, torch.int64, torch.bool, torch.complex32, torch.complex64,
    torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip


def constants(dtype: torch.dtype) -> dict[str, Tensor]:
    whole = torch.arange(12).remainder(2).to(torch.float32).to(dtype).reshape(3, 4)
    return {
        "whole": whole,
        "scalar": whole[0, 1].clone(),
        "empty": whole[:0].clone(),
        "turned": whole.t(),
        "window": whole[1:, ::2],
        "spread": whole[:1].expand(3, 4),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constants_of_every_dtype_and_layout(dtype: torch.dtype) -> None:
    root, graph = nn.Module(), Graph()
    held = constants(dtype)
    for name, tensor in held.items():
        setattr(root, name, tensor)
    root.register_buffer("tied", held["whole"])
    graph.output([graph.get_attr(name) for name in [*held, "tied"]])
    module = GraphModule(root, graph)
    encoded = wire.encode(module)
    again = wire.decode(encoded.body, encoded.presentation)
    assert wire.encode(again).body == encoded.body
    rebuilt = wire.decode(
        encoded.body,
        encoded.presentation,
        bind=lambda g, a, _: encoded.attributes[g][a],  # type: ignore[return-value]
    )
    for ours, theirs in zip(rebuilt(), module(), strict=True):
        assert ours.dtype == dtype
        assert ours.stride() == theirs.stride()
        assert ours.untyped_storage().data_ptr() == theirs.untyped_storage().data_ptr()
    digests = {wire.digest(GraphModule(root, graph)), encoded.digest.hex()}
    root.whole = held["whole"].clone()
    assert len(digests) == 1
    assert wire.digest(GraphModule(root, graph)) not in digests

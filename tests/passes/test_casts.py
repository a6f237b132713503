"""Casts between the matrix work of converted graphs: on real captures, through views."""

from __future__ import annotations

import pytest
import torch
from passes.running import outputs, run
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from wire.captures import Capture

from lazyfx_server.passes import Registry

CONVERT = Registry().create("convert_dtype")
REMOVE = Registry().create("remove_duplicate_casts")


@pytest.mark.parametrize("kind", ["gpt2-export", "gpt2-dynamo"])
def test_values_stay_in_the_lower_type_from_product_to_product(
    captured: dict[str, Capture], kind: str
) -> None:
    capture = captured[kind]
    converted = run(capture.module, CONVERT)
    ran = run(converted.module, REMOVE)
    assert ran.changed
    assert ran.runs[0].nodes_after < ran.runs[0].nodes_before
    expected = outputs(converted.module, capture.args, capture.kwargs)
    found = outputs(ran.module, capture.args, capture.kwargs)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other), "the casts that go changed no value"


def traced(function: object) -> GraphModule:
    module = make_fx(function, tracing_mode="fake")(torch.ones(4, 6, dtype=torch.bfloat16))
    assert isinstance(module, GraphModule)
    return module


def test_a_view_between_two_casts_is_no_hindrance() -> None:
    ran = run(traced(lambda x: x.float().view(2, 12).t().bfloat16() + 1), REMOVE)
    assert ran.note == "1 casts skipped"
    assert "_to_copy" not in str(ran.module.graph)
    values = [node.meta["val"].dtype for node in ran.module.graph.nodes if node.op != "output"]
    assert set(values) == {torch.bfloat16}, "what is known of the views is true again"


def handed_out(x: Tensor) -> Tensor:
    return x.float().view(2, 12).bfloat16()


def read_twice(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.float().view(2, 12)
    return wide.bfloat16() + 1, wide * 2


def summed(x: Tensor) -> Tensor:
    return x.float().sum(1).bfloat16() + 1


def narrowed(x: Tensor) -> Tensor:
    return x.to(torch.float16).view(2, 12).bfloat16() + 1


@pytest.mark.parametrize("function", [handed_out, read_twice, summed, narrowed])
def test_what_needs_the_cast_keeps_it(function: object) -> None:
    assert not run(traced(function), REMOVE).changed


@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e8m0fnu"]
)
def test_types_that_torch_does_not_promote(name: str) -> None:
    narrow = getattr(torch, name)
    module = traced(lambda x: x.float().to(narrow).float().to(narrow).bfloat16() + 1)
    ran = run(module, REMOVE)
    x = torch.randn(4, 6, dtype=torch.bfloat16).abs()
    assert torch.equal(ran.module(x), module(x))

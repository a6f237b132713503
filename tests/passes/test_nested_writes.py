"""Writes by another graph of the tree: passes on one graph see what the others write."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from passes.library import LIBRARY
from passes.running import run
from passes.sharing import MODELS, calls, symbolic
from torch import Tensor, nn

from lazyfx_server.passes import Pass, Registry

_registry = Registry()
# Those that need a joint graph, or patterns, or change nothing.
_LEFT_OUT = {"partition_min_cut", "replace_pattern", "analyze", "shape_propagation"}
NAMES = sorted({*_registry.names(), *LIBRARY} - _LEFT_OUT)
OPTIONS: dict[str, dict[str, Any]] = {
    "partition_by_support": {"supported": ["add", "mul", "sum"]},
    "quantize_weights": {"min_elements": 1},
    "split_module": {"max_nodes": 2},
}


class Inner(nn.Module):
    """Writes what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        x.add_(1)
        return x.sum()


class Outer(nn.Module):
    """Reads tensors before and after a nested graph writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = symbolic(Inner())
        self.register_buffer("state", torch.ones(4))
        self.linear = nn.Linear(4, 4).requires_grad_(False)
        nn.init.eye_(self.linear.weight)

    def forward(self, x: Tensor) -> Any:
        one, written, two = (x * 2).sum(), self.inner(x), (x * 2).sum()
        early = (self.state * 3).sum()
        self.inner(self.state)
        late = (self.state * 3).sum()
        before = self.linear(x)
        self.inner(self.linear.weight)
        return one, written, two, early, late, before * 1, self.linear(x) * 1


def made(name: str) -> Pass:
    return _registry.create(name, OPTIONS.get(name, {}))


@pytest.mark.parametrize(
    ("make", "first"),
    [
        (Outer, ""),
        *itertools.product([*MODELS, Outer], ["split_module", "partition_by_support"]),
    ],
)
def test_any_pass_after_a_split_keeps_what_two_calls_return(
    make: Callable[[], nn.Module], first: str
) -> None:
    split = run(symbolic(make()), made(first)).module if first else symbolic(make())
    expected, wrong = calls(copy.deepcopy(split)), []
    for name in NAMES:
        ran = run(split, made(name))
        try:
            torch.testing.assert_close(calls(ran.module), expected, rtol=0.02, atol=0.02)
        except AssertionError as error:
            wrong.append(f"{name}: {str(error).splitlines()[0]}")
    assert not wrong

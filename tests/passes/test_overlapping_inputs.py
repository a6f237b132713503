"""Inputs in one memory: whatever the passes, a write to one is seen through the others."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from passes.library import LIBRARY
from passes.overlapping import HOW, MODELS, outcome, symbolic
from passes.running import run
from torch import Tensor, nn

from lazyfx_server.passes import Registry

_registry = Registry()

PIPELINES = [
    *(name for name in LIBRARY if name != "analyze"),
    "common_subexpression_elimination",
    "functionalize,common_subexpression_elimination,no_op_elimination,dead_code_elimination",
    "decompose,common_subexpression_elimination,sink_views,reinplace,dead_code_elimination",
]


@pytest.mark.parametrize("make", MODELS)
def test_any_pass_keeps_what_two_calls_do(make: Callable[[], nn.Module]) -> None:
    wrong, expected = [], {how: outcome(make(), how) for how in HOW}
    for pipeline in PIPELINES:
        passes = [LIBRARY.get(name) or _registry.create(name) for name in pipeline.split(",")]
        ran = run(symbolic(make()), *passes)
        for how in HOW if ran.changed else ():
            found = outcome(copy.deepcopy(ran.module), how)
            try:
                torch.testing.assert_close(found, expected[how], rtol=0.01, atol=0.01)
            except AssertionError as error:
                wrong.append(f"{pipeline}, {how}: {str(error).splitlines()[0]}")
        if pipeline in ("functionalize", "decompose"):
            assert ran.changed, f"{pipeline} left the model alone: nothing was compared"
    assert not wrong


@pytest.mark.parametrize("name", ["functionalize", "decompose"])
def test_one_call_that_writes_two_inputs_is_left_alone(name: str) -> None:
    """Which of them its kernel writes first, if they share memory, only the kernel knows."""

    class Extremes(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            torch.aminmax(a * 1, out=(a[0], b[0]))
            return a + b

    ran = run(symbolic(Extremes()), _registry.create(name))
    assert not ran.changed
    assert "writes two tensors that may share memory" in ran.note

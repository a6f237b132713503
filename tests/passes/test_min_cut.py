"""A joint graph cut into forward and backward computes what it did, and keeps less."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from functorch.compile import aot_function, default_partition, make_boxed_func
from passes.running import decoded
from torch.fx import GraphModule, symbolic_trace

from lazyfx.shared import wire
from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import PassError, Pipeline, Registry


def function(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    for weight in weights:
        x = torch.nn.functional.gelu(torch.relu(x @ weight) * 2 + 1).sin()
    return x


@pytest.fixture(scope="module")
def joint() -> tuple[GraphModule, list[Any], int]:
    """AOTAutograd's joint graph of primals and tangents, and inputs for it."""
    found: list[tuple[GraphModule, int]] = []

    def keep(module: GraphModule, inputs: Any, *, num_fwd_outputs: int, **other: Any) -> Any:
        found.append((copy.deepcopy(module), num_fwd_outputs))
        return default_partition(module, inputs, num_fwd_outputs=num_fwd_outputs, **other)

    def run(module: GraphModule, inputs: Any) -> Any:
        return make_boxed_func(module.forward)

    inputs = [torch.randn(8, 8, requires_grad=True) for _ in range(4)]
    result = aot_function(function, fw_compiler=run, bw_compiler=run, partition_fn=keep)(*inputs)
    module, outputs = found[0]
    # The joint graph takes (primals, tangents) as two lists; as a server gets it, it is flat.
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    primals = [value.detach() for value in inputs]
    return module, [*primals, torch.randn_like(result)], outputs


def cut(module: GraphModule, **options: object) -> tuple[GraphModule, dict[str, Any], str]:
    ledger = RecompileLedger()
    pass_ = Registry().create("partition_min_cut", options)
    outcome = Pipeline((pass_,)).run(module, ledger)
    assert ledger.performed() == 0
    return outcome.module, dict(outcome.runs[0].data or {}), outcome.runs[0].note


@pytest.mark.parametrize("budget", [1.0, 0.0])
def test_outputs_and_gradients_are_the_same(
    joint: tuple[GraphModule, list[Any], int], budget: float
) -> None:
    module, inputs, outputs = joint
    found, data, note = cut(copy.deepcopy(module), num_outputs=outputs, memory_budget=budget)
    assert "cross" in note
    torch.testing.assert_close(list(found(*inputs)), list(module(*inputs)))
    parts = dict(found.named_children())
    assert set(parts) >= {"forward_part", "backward_part"}
    kept = parts["forward_part"](*inputs[:4])[outputs:]
    assert len(kept) == data["crossing"]
    assert sum(t.numel() * t.element_size() for t in kept) == data["crossing_bytes"]
    wire.encode(found)


def test_less_budget_keeps_less(joint: tuple[GraphModule, list[Any], int]) -> None:
    module, _, outputs = joint
    sizes = [
        cut(copy.deepcopy(module), num_outputs=outputs, memory_budget=b)[1]["crossing_bytes"]
        for b in (1.0, 0.0)
    ]
    assert sizes[1] < sizes[0]


def test_it_works_on_what_a_worker_decodes(joint: tuple[GraphModule, list[Any], int]) -> None:
    module, _, outputs = joint
    found, data, _ = cut(decoded(module), num_outputs=outputs)
    assert data["crossing"] > 0
    assert wire.encode(found).nodes > 0


def test_counts_that_do_not_fit_are_refused(joint: tuple[GraphModule, list[Any], int]) -> None:
    with pytest.raises(PassError, match="set num_outputs") as caught:
        cut(copy.deepcopy(joint[0]))
    assert caught.value.field == "passes[0].options.num_outputs"
    traced = symbolic_trace(lambda a, b: (a + b, a * b))
    assert cut(traced, num_outputs=1)[2].startswith("skipped")

"""A call that would make too many outputs is refused before it makes any."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule, symbolic_trace

from lazyfx_server.passes import PassError
from lazyfx_server.passes.analysis.fake_run import FakeRun
from lazyfx_server.passes.analysis.large_numbers import TooLargeError, check_numbers
from lazyfx_server.passes.analysis.output_counts import COUNTED, check_outputs, outputs_of
from lazyfx_server.security import allowed

MANY = 10**8
x = torch.empty(MANY, 4, device="meta")
aten = torch.ops.aten
# Operators that return lists no longer than one of their arguments, or than a shape.
FOLLOW_ARGUMENTS = frozenset(
    [
        "_amp_foreach_non_finite_check_and_unscale",
        "_cudnn_rnn_backward",
        "_fused_adagrad",
        "_fused_adam",
        "_fused_adamw",
        "_fused_sgd",
        "_histogramdd_bin_edges",
        "_to_cpu",
        "keys",
        "lstm_mps_backward",
        "miopen_rnn_backward",
        "sorted",
        "align_tensors",
        "atleast_1d",
        "atleast_2d",
        "atleast_3d",
        "broadcast_tensors",
        "dequantize",
        "gradient",
        "gru",
        "histogramdd",
        "lstm",
        "meshgrid",
        "nonzero_numpy",
        "quantize_per_tensor",
        "rnn_relu",
        "rnn_tanh",
        "unflatten_dense_tensors",
        "where",
        "unravel_index",
    ]
)

CALLS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "Tensor.unbind": ("unbind", (x,), {}),
    "torch.unbind": (torch.unbind, (x,), {"dim": -2}),
    "aten.unbind": (aten.unbind.int, (x,), {}),
    "aten.unbind_copy": (aten.unbind_copy.int, (x, 0), {}),
    "packet": (aten.unbind, (x,), {}),
    "Tensor.split": ("split", (x, 1), {}),
    "torch.split by keyword": (torch.split, (x,), {"split_size_or_sections": 1}),
    "aten.split": (aten.split.Tensor, (x, 1), {}),
    "aten.unsafe_split": (aten.unsafe_split.Tensor, (x, 1, 0), {}),
    "split_with_sizes": (aten.split_with_sizes.default, (x, [1] * 20_000), {}),
    "Tensor.chunk": ("chunk", (x, MANY), {}),
    "aten.unsafe_chunk": (aten.unsafe_chunk.default, (x, MANY), {}),
    "Tensor.tensor_split": ("tensor_split", (x, MANY), {}),
    "torch.tensor_split": (torch.tensor_split, (x, [1] * 20_000), {}),
    "Tensor.hsplit": ("hsplit", (x, MANY), {}),
    "vsplit": (torch.vsplit, (x, MANY), {}),
    "list of a tensor": (list, (x,), {}),
    "tuple of a tensor": (tuple, (x,), {}),
    "sum of a tensor": (sum, (x,), {}),
    "max of a tensor": (max, (x,), {}),
    "list of a range": (list, (range(MANY),), {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_with_too_many_outputs_is_refused_before_it_is_made(name: str) -> None:
    target, args, kwargs = CALLS[name]
    with pytest.raises(PassError, match="max_outputs"):
        check_outputs(target, args, kwargs)


@pytest.mark.parametrize("name", ["sum", "prod", "all", "any", "max", "min"])
def test_reductions_of_torch_make_one_tensor(name: str) -> None:
    """They are called as Python's functions are that read a tensor row by row."""
    overload = getattr(aten, name).default
    for target in (name, getattr(torch, name), getattr(aten, name), overload):
        check_outputs(target, (x,), {})


def test_outputs_are_counted_as_torch_makes_them() -> None:
    small = torch.empty(7, 4, 6, device="meta")
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (torch.unbind, (small,), {}),
        (torch.unbind, (small, 1), {}),
        (torch.split, (small, 2), {}),
        (torch.split, (small, [1, 6]), {}),
        (torch.split, (small, 4), {"dim": 2}),
        (torch.chunk, (small, 3), {}),
        (torch.chunk, (small, 30), {"dim": -1}),
        (torch.tensor_split, (small, 3), {}),
        (torch.tensor_split, (small, (1, 2, 3)), {}),
        (torch.dsplit, (small, 3), {}),
        (aten.unbind_copy.int, (small, 2), {}),
        (aten.unsafe_split.Tensor, (small, 3), {}),
    ]
    for target, args, kwargs in calls:
        made = len(target(*args, **kwargs))
        assert made <= outputs_of(target, args, kwargs) <= max(made, 6), target
    # chunk may make fewer than it was asked for, never more.
    assert outputs_of(torch.chunk, (small, 30, -1), {}) == 6
    assert outputs_of(torch.unbind, (torch.empty(()),), {}) == 0


def test_a_graph_is_refused_at_the_node() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.unbind(x)[0]

    module: GraphModule = symbolic_trace(f)
    run = FakeRun(module)
    first, second, *_ = module.graph.nodes
    with run.active():
        run.give(first, torch.empty(MANY, device="cpu"))
        with pytest.raises(PassError) as caught:
            run.compute(second)
    assert caught.value.node == "unbind"


@pytest.mark.parametrize(
    ("target", "operands"),
    [
        ("mul", ([1], MANY)),
        ("imul", ("a", MANY)),
        ("mod", ("%100000000d", 1)),
        (round, (1, -MANY)),
        ("round", (None, MANY)),
        (torch.ops.aten.round.decimals, (None, -MANY)),
        (torch.ops.aten.special_round.out, (None, MANY)),
    ],
)
def test_python_makes_no_endless_numbers_lists_and_texts(
    target: object, operands: tuple[Any, ...]
) -> None:
    with pytest.raises(TooLargeError):
        check_numbers(target, operands)


def test_large_numbers_may_be_rounded() -> None:
    check_numbers(round, (MANY,))
    check_numbers(round, (MANY, 3))


def _lists(operator: Callable[..., Any]) -> bool:
    for overload in operator.overloads():  # type: ignore[attr-defined]
        schema = getattr(operator, overload)._schema
        if any("Tensor[]" in str(result.type).replace("List[Tensor]", "Tensor[]")
               for result in schema.returns):  # fmt: skip
            return True
    return False


def test_each_operator_that_returns_a_list_is_known() -> None:
    """Its outputs are counted, or no more than its arguments are."""
    table = json.loads(Path(allowed.__file__).with_name("targets.json").read_text("utf-8"))
    names = {
        word.partition(".")[0]
        for word in _words(table)
        if word.startswith("aten::")
    }  # fmt: skip
    assert len(names) > 500
    unknown = []
    for name in sorted(names):
        short = name.removeprefix("aten::")
        operator = getattr(aten, short, None)
        if operator is None or not _lists(operator):
            continue
        if short in COUNTED or short in FOLLOW_ARGUMENTS or short.startswith("_foreach_"):
            continue
        unknown.append(short)
    assert not unknown, " ".join(unknown)


def _words(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [w for key, item in value.items() for w in [str(key), *_words(item)]]
    if isinstance(value, list):
        return [w for item in value for w in _words(item)]
    return [value] if isinstance(value, str) else []

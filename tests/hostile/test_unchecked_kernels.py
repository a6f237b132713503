"""Calls that fit their schemas but would crash the process, even on fake tensors, are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Graph, GraphModule

from lazyfx.errors import DecodeError
from lazyfx.shared import wire
from lazyfx.shared.wire.targets.allow_table import find
from lazyfx.v1 import graph_pb2 as pb
from lazyfx_server.security.checked_graph import check

_ATEN = torch.ops.aten
_STATS = (2, 4, 3)


def _checked(target: Callable[..., Any], args: Callable[[Any, Any], tuple[Any, ...]]) -> None:
    graph = Graph()
    x = graph.placeholder("x")
    number = graph.call_function(torch.numel, (x,))
    graph.output(graph.call_function(target, args(x, number)))
    check(wire.encode(GraphModule(torch.nn.Module(), graph)).body)


def _cell(hx: Callable[[Any], Any]) -> Callable[[Any, Any], tuple[Any, ...]]:
    return lambda x, _: (x, hx(x), *[x] * 8, 1, 1, 1, 1)


REFUSED: list[tuple[Callable[..., Any], Callable[[Any, Any], tuple[Any, ...]], str]] = [
    (_ATEN._stack.default, lambda x, n: ([], 0), "'tensors'"),
    (_ATEN._stack, lambda x, n: ([], 0), "'tensors'"),
    (torch._stack, lambda x, n: ([],), "'tensors'"),
    (_ATEN._stack.default, lambda x, n: (x, 0), "'tensors'"),
    (
        _ATEN.fractional_max_pool2d_backward.default,
        lambda x, n: (x, x, [2, 2], [], x),
        "'output_size'",
    ),
    (
        _ATEN.fractional_max_pool3d_backward.default,
        lambda x, n: (x, x, [2, 2], [2, 2, 2], x),
        "'kernel_size'",
    ),
    (_ATEN.native_group_norm.default, lambda x, n: (x, x, x, *_STATS, 0, 1e-5), "'group'"),
    (_ATEN.native_group_norm.default, lambda x, n: (x, x, x, *_STATS, -1, 1e-5), "'group'"),
    (_ATEN.native_group_norm.default, lambda x, n: (x, x, x, *_STATS, n, 1e-5), "'group'"),
    (torch.native_group_norm, lambda x, n: (x, x, x, *_STATS, 0, 1e-5), "'group'"),
    (
        _ATEN.native_group_norm_backward.default,
        lambda x, n: (x, x, x, x, x, *_STATS, 0, [True] * 3),
        "'group'",
    ),
    (_ATEN.quantized_lstm_cell.default, _cell(lambda x: []), "'hx'"),
    (torch.quantized_lstm_cell, _cell(lambda x: [x]), "'hx'"),
    (_ATEN._foreach_copy.default, lambda x, n: ([x], [x, x]), "'self' and 'src'"),
    (_ATEN._foreach_copy, lambda x, n: ([x], x), "'self' and 'src'"),
]

ACCEPTED: list[tuple[Callable[..., Any], Callable[[Any, Any], tuple[Any, ...]]]] = [
    (_ATEN._stack.default, lambda x, n: ([x, x], 0)),
    (_ATEN.fractional_max_pool2d_backward.default, lambda x, n: (x, x, [2, 2], [n, 2], x)),
    (_ATEN.native_group_norm.default, lambda x, n: (x, x, x, n, n, n, 2, 1e-5)),
    (_ATEN.quantized_lstm_cell.default, _cell(lambda x: [x, x])),
    (_ATEN._foreach_copy.default, lambda x, n: ([x, x], [x, x])),
]


@pytest.mark.parametrize(("target", "args", "named"), REFUSED)
def test_what_a_kernel_takes_for_granted_is_checked(
    target: Callable[..., Any], args: Callable[[Any, Any], tuple[Any, ...]], named: str
) -> None:
    with pytest.raises(DecodeError, match=named):
        _checked(target, args)


@pytest.mark.parametrize(("target", "args"), ACCEPTED)
def test_what_it_takes_is_accepted(
    target: Callable[..., Any], args: Callable[[Any, Any], tuple[Any, ...]]
) -> None:
    _checked(target, args)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (pb.TARGET_KIND_OPERATOR, "aten::range.step"),
        (pb.TARGET_KIND_OPERATOR_PACKET, "aten::range"),
        (pb.TARGET_KIND_FUNCTION, "torch.range"),
        (pb.TARGET_KIND_OPERATOR, "_quantized::wrapped_fbgemm_linear_fp16_weight.default"),
        (pb.TARGET_KIND_OPERATOR, "quantized::embedding_bag_byte_unpack.default"),
    ],
)
def test_kernels_that_cannot_be_called_safely_are_no_targets(
    kind: pb.TargetKind.ValueType, name: str
) -> None:
    with pytest.raises(DecodeError, match="not in the table of allowed targets"):
        find(kind, name)

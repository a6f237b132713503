"""Calls that fit, of operators whose operands must fit each other; drawn ones change a little.

A call drawn from a schema alone is refused for its shapes long before a kernel looks at an index.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, Node

WILD = (2**40, -(2**40), 2**30, -(2**62), 2**62, -1, 0, 1, 2, 3, 7, 1000, 100_000, -(2**63), 2**31)


@dataclass(frozen=True)
class Filled:
    """A tensor of one value."""

    shape: tuple[int, ...]
    value: float = 1.0
    dtype: torch.dtype = torch.float32

    def node(self, graph: Graph) -> Node:
        value = self.value if self.dtype.is_floating_point else int(self.value)
        args = (list(self.shape), value)
        return graph.call_function(torch.ops.aten.full.default, args, {"dtype": self.dtype})


def f(*shape: int) -> Filled:
    return Filled(shape)


def i(*shape: int) -> Filled:
    """Indices."""
    return Filled(shape, 1, torch.int64)


def b(*shape: int) -> Filled:
    return Filled(shape, 1, torch.bool)


_NORM = [f(2, 4, 3), f(4), f(4), f(4), f(4)]
_PLANE = f(1, 2, 4, 4)
_POOL2 = [[2, 2], [2, 2], [0, 0], [1, 1], False]
_POOL3 = [[2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], False]
_HEADS = f(1, 2, 3, 8)

CALLS: dict[str, list[Any]] = {
    "_softmax_backward_data.default": [f(2, 4), f(2, 4), 1, torch.float32],
    "_log_softmax_backward_data.default": [f(2, 4), f(2, 4), 1, torch.float32],
    "_adaptive_avg_pool2d_backward.default": [f(1, 2, 2, 2), _PLANE],
    "_native_batch_norm_legit.default": [*_NORM, True, 0.1, 1e-5],
    "_native_batch_norm_legit_no_training.default": [*_NORM, 0.1, 1e-5],
    "native_batch_norm.default": [*_NORM, False, 0.1, 1e-5],
    "native_batch_norm_backward.default": [
        f(2, 4, 3), f(2, 4, 3), f(4), f(4), f(4), f(4), f(4), True, 1e-5, [True, True, True],
    ],
    "native_group_norm.default": [f(2, 4, 3), f(4), f(4), 2, 4, 3, 2, 1e-5],
    "native_group_norm_backward.default": [
        f(2, 4, 3), f(2, 4, 3), f(2, 2), f(2, 2), f(4), 2, 4, 3, 2, [True, True, True],
    ],
    "native_layer_norm.default": [f(2, 4, 3), [4, 3], f(4, 3), f(4, 3), 1e-5],
    "native_layer_norm_backward.default": [
        f(2, 4, 3), f(2, 4, 3), [4, 3], f(2, 1, 1), f(2, 1, 1), f(4, 3), f(4, 3),
        [True, True, True],
    ],
    "_scaled_dot_product_flash_attention_for_cpu.default": [_HEADS, _HEADS, _HEADS, 0.0, False],
    "_scaled_dot_product_flash_attention_for_cpu_backward.default": [
        _HEADS, _HEADS, _HEADS, _HEADS, _HEADS, f(1, 2, 3), 0.0, False,
    ],
    "_unsafe_index.Tensor": [f(4, 4), [i(2), i(2)]],
    "index.Tensor": [f(4, 4), [i(2), None]],
    "index_put.default": [f(4, 4), [i(2), i(2)], f(2), True],
    "_unsafe_index_put.default": [f(4, 4), [i(2), i(2)], f(2), True],
    "_index_put_impl_.default": [f(4, 4), [i(2), i(2)], f(2), True, True],
    "_upsample_nearest_exact1d.default": [f(1, 2, 4), [8], 2.0],
    "_upsample_nearest_exact2d.default": [_PLANE, [8, 8], 2.0, 2.0],
    "_upsample_nearest_exact3d.default": [f(1, 1, 2, 4, 4), [4, 8, 8], 2.0, 2.0, 2.0],
    "upsample_nearest1d.default": [f(1, 2, 4), [8], 2.0],
    "upsample_nearest2d.default": [_PLANE, [8, 8], 2.0, 2.0],
    "upsample_nearest3d.default": [f(1, 1, 2, 4, 4), [4, 8, 8], 2.0, 2.0, 2.0],
    "upsample_linear1d.default": [f(1, 2, 4), [8], False, 2.0],
    "upsample_bilinear2d.default": [_PLANE, [8, 8], False, 2.0, 2.0],
    "upsample_bicubic2d.default": [_PLANE, [8, 8], False, 2.0, 2.0],
    "upsample_trilinear3d.default": [f(1, 1, 2, 4, 4), [4, 8, 8], False, 2.0, 2.0, 2.0],
    "upsample_nearest1d.vec": [f(1, 2, 4), None, [2.0]],
    "upsample_nearest2d.vec": [_PLANE, None, [2.0, 2.0]],
    "upsample_bilinear2d.vec": [_PLANE, None, False, [2.0, 2.0]],
    "upsample_bicubic2d.vec": [_PLANE, [8, 8], True, None],
    "addbmm.default": [f(2, 4), f(3, 2, 5), f(3, 5, 4)],
    "addmm.default": [f(2, 4), f(2, 3), f(3, 4)],
    "addmv.default": [f(2), f(2, 3), f(3)],
    "addr.default": [f(2, 3), f(2), f(3)],
    "baddbmm.default": [f(3, 2, 4), f(3, 2, 5), f(3, 5, 4)],
    "bmm.default": [f(3, 2, 5), f(3, 5, 4)],
    "mm.default": [f(2, 3), f(3, 4)],
    "mv.default": [f(2, 3), f(3)],
    "vdot.default": [f(3), f(3)],
    "dot.default": [f(3), f(3)],
    "linalg_cross.default": [f(2, 3), f(2, 3)],
    "_euclidean_dist.default": [f(2, 3), f(4, 3)],
    "avg_pool2d.default": [_PLANE, [2, 2], [2, 2], [0, 0], False, True, 3],
    "avg_pool2d_backward.default": [
        f(1, 2, 2, 2), _PLANE, [2, 2], [2, 2], [0, 0], False, True, None,
    ],
    "avg_pool3d.default": [f(1, 1, 4, 4, 4), [2, 2, 2], [2, 2, 2], [0, 0, 0], False, True, 3],
    "max_pool2d_with_indices.default": [_PLANE, *_POOL2],
    "max_pool3d_with_indices.default": [f(1, 1, 4, 4, 4), *_POOL3],
    "max_pool2d_with_indices_backward.default": [f(1, 2, 2, 2), _PLANE, *_POOL2, i(1, 2, 2, 2)],
    "max_pool3d_with_indices_backward.default": [
        f(1, 1, 2, 2, 2), f(1, 1, 4, 4, 4), *_POOL3, i(1, 1, 2, 2, 2),
    ],
    "convolution.default": [_PLANE, f(4, 1, 3, 3), f(4), [1, 1], [1, 1], [1, 1], False, [0, 0], 2],
    "convolution_backward.default": [
        f(1, 4, 4, 4), _PLANE, f(4, 1, 3, 3), [4], [1, 1], [1, 1], [1, 1], False, [0, 0], 2,
        [True, True, True],
    ],
    "embedding.default": [f(4, 3), i(2, 2), 0, False, False],
    "embedding_dense_backward.default": [f(2, 2, 3), i(2, 2), 4, 0, True],
    "gather.default": [f(4, 4), 1, i(2, 2)],
    "index_add.default": [f(4, 4), 0, i(2), f(2, 4)],
    "index_copy.default": [f(4, 4), 0, i(2), f(2, 4)],
    "index_fill.int_Scalar": [f(4, 4), 0, i(2), 0.5],
    "index_fill.int_Tensor": [f(4, 4), 0, i(2), f()],
    "index_select.default": [f(4, 4), 0, i(2)],
    "take.default": [f(4, 4), i(2)],
    "put.default": [f(4, 4), i(2), f(2), True],
    "scatter.src": [f(4, 4), 0, i(2, 2), f(2, 2)],
    "scatter.value": [f(4, 4), 0, i(2, 2), 0.5],
    "scatter.reduce": [f(4, 4), 0, i(2, 2), f(2, 2), "add"],
    "scatter_add.default": [f(4, 4), 0, i(2, 2), f(2, 2)],
    "scatter_reduce.two": [f(4, 4), 0, i(2, 2), f(2, 2), "mean", True],
    "nll_loss_forward.default": [f(3, 4), i(3), f(4), 1, -100],
    "nll_loss_backward.default": [f(), f(3, 4), i(3), f(4), 1, -100, f()],
    "masked_select.default": [f(2, 3), b(2, 3)],
    "masked_fill.Tensor": [f(2, 3), b(2, 3), f()],
    "multinomial.default": [f(2, 4), 2, False],
    "reflection_pad1d.default": [f(2, 3, 4), [1, 1]],
    "reflection_pad2d.default": [_PLANE, [1, 1, 1, 1]],
    "replication_pad1d.default": [f(2, 3, 4), [1, 1]],
    "replication_pad2d.default": [_PLANE, [1, 1, 1, 1]],
    "select_backward.default": [f(4), [3, 4], 0, 1],
    "slice_backward.default": [f(2, 4), [3, 4], 0, 0, 2, 1],
    "diagonal_backward.default": [f(3), [3, 4], 0, 0, 1],
    "select_scatter.default": [f(3, 4), f(4), 0, 1],
    "slice_scatter.default": [f(3, 4), f(2, 4), 0, 0, 2, 1],
    "diagonal_scatter.default": [f(3, 4), f(3), 0, 0, 1],
    "as_strided.default": [f(3, 4), [2, 2], [4, 1], 1],
    "as_strided_copy.default": [f(3, 4), [2, 2], [4, 1], 1],
    "_reshape_alias_copy.default": [f(3, 4), [4, 3], [3, 1]],
    "split_with_sizes.default": [f(4, 3), [1, 3], 0],
    "unsafe_split_with_sizes.default": [f(4, 3), [1, 3], 0],
    "split_with_sizes_copy.default": [f(4, 3), [1, 3], 0],
    "repeat_interleave.Tensor": [i(4), 4],
    "native_dropout_backward.default": [f(2, 3), b(2, 3), 2.0],
    "kthvalue.default": [f(3, 4), 2, 1, True],
    "topk.default": [f(3, 4), 2, 1, True, True],
    "cumsum.default": [f(3, 4), 1],
    "constant_pad_nd.default": [f(3, 4), [1, 1, -1, 2], 0.5],
    "isin.Tensor_Tensor": [f(3, 4), f(2)],
    "rrelu_with_noise.default": [f(2, 3), f(2, 3), 0.1, 0.3, True],
    "view_as_real.default": [Filled((2, 3), 1.0, torch.complex64)],
    "where.self": [b(2, 3), f(2, 3), f(2, 3)],
}  # fmt: skip


def changed(call: list[Any], dice: random.Random) -> list[Any]:
    """A call with one or two of its operands changed."""
    found = list(call)
    for _ in range(dice.choice((1, 1, 2))):
        place = dice.randrange(len(found))
        found[place] = _other(found[place], dice)
    return found


def _other(value: Any, dice: random.Random) -> Any:
    if isinstance(value, Filled):
        return _other_tensor(value, dice)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return dice.choice((*WILD, value + 1, value - 1))
    if isinstance(value, float):
        return dice.choice((0.0, -1.0, 1e30, 1e-9, float("inf"), float("nan")))
    if isinstance(value, list) and value:
        place = dice.randrange(len(value))
        if dice.random() < 0.3:
            return value[:place] + value[place + dice.choice((0, 1)) :] + [value[place]] * 1
        return [*value[:place], _other(value[place], dice), *value[place + 1 :]]
    if isinstance(value, torch.dtype):
        return dice.choice((torch.float64, torch.int64, torch.bool, torch.bfloat16))
    if isinstance(value, str):
        return dice.choice(("", "amax", "multiply", "prod", "wild"))
    return value


def _other_tensor(value: Filled, dice: random.Random) -> Filled:
    shape = list(value.shape)
    place = dice.randrange(len(shape)) if shape else 0
    match dice.randrange(7):
        case 0 if shape:
            shape[place] += dice.choice((1, 4, 1000))
        case 1 if shape:
            shape[place] -= 1
        case 2 if shape:
            shape[place] = 0
        case 3:
            shape = shape[1:]
        case 4:
            shape = []
        case 5:
            dtypes = (torch.float64, torch.int64, torch.int32, torch.bool, torch.float16)
            return replace(value, dtype=dice.choice(dtypes))
        case _:
            return replace(value, value=dice.choice(WILD))
    return replace(value, shape=tuple(shape))

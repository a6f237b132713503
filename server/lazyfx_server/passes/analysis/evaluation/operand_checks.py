"""Checks of operands that a kernel does not validate itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload

Check = Callable[["Call"], None]
Bound = Callable[["Call"], int]


class UnsafeOperandsError(Exception):
    """The call would access memory out of bounds, or crash the process."""


class Call:
    """An operator and its arguments, by the names of its schema."""

    def __init__(
        self, func: OpOverload[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        arguments = func._schema.arguments  # noqa: SLF001 - schema
        self._names = [a.name for a in arguments]
        self._given = {
            **{a.name: a.default_value for a in arguments if a.has_default_value()},
            **dict(zip(self._names, args, strict=False)),
            **kwargs,
        }

    def __contains__(self, name: str) -> bool:
        return self._given.get(name) is not None

    def __getitem__(self, name: str) -> Any:
        return self._given[name]

    def tensor(self, name: str) -> torch.Tensor:
        """An operand that is a tensor."""
        value = self._given[name]
        if not isinstance(value, torch.Tensor):
            raise UnsafeOperandsError(f"{name} is not a tensor")
        return value

    def values(self) -> list[Any]:
        """All operands by name."""
        return list(self._given.values())


def _must(holds: bool, reason: str) -> None:
    if not holds:
        raise UnsafeOperandsError(reason)


def size(name: str, dim: int) -> Bound:
    """The size of a dimension."""
    return lambda call: call.tensor(name).shape[dim]


def size_at(name: str, dim: str) -> Bound:
    """The size of the dimension that another operand gives; 1 for a zero-dimensional tensor."""

    def bound(call: Call) -> int:
        shape = call.tensor(name).shape
        return shape[int(call[dim])] if shape else 1

    return bound


def elements(name: str) -> Bound:
    """The number of elements of an operand."""
    return lambda call: call.tensor(name).numel()


def indices(name: str, bound: Bound, *, negative: bool) -> Check:
    """Check that each index is valid for a dimension."""

    def check(call: Call) -> None:
        _within(call.tensor(name), bound(call), negative=negative)

    return check


def _within(index: torch.Tensor, count: int, *, negative: bool) -> None:
    if index.numel() == 0:
        return
    _must(
        not index.dtype.is_floating_point and not index.dtype.is_complex,
        "an index is not an integer",
    )
    least, most = (int(value) for value in torch.aminmax(index))
    _must(least >= (-count if negative else 0) and most < count, "an index is out of bounds")


def _is_integral(tensor: torch.Tensor) -> bool:
    return not tensor.dtype.is_floating_point and not tensor.dtype.is_complex


def indices_of_each_dimension(name: str) -> Check:
    """Check index tensors, one or None for each leading dimension; masks select positions."""

    def check(call: Call) -> None:
        shape = call.tensor("self").shape
        place = 0
        for index in call[name]:
            if index is None:
                place += 1
            elif index.dtype in (torch.bool, torch.uint8):
                _must(
                    index.shape == shape[place : place + index.ndim], "a mask with the wrong shape"
                )
                place += index.ndim
            else:
                _must(place < len(shape), "more indices than dimensions")
                _within(index, shape[place], negative=True)
                place += 1

    return check


def embedding_backward(call: Call) -> None:
    """Check that the gradient has a row for each index."""
    index, gradient = call.tensor("indices"), call.tensor("grad_output")
    count = int(call["num_weights"])
    _within(index, count, negative=False)
    _must(gradient.shape[:-1] == index.shape, "a gradient with the wrong shape")


def targets(call: Call) -> None:
    """Check that each class has a score or is ignored."""
    scores, target = call.tensor("self"), call.tensor("target")
    _must(scores.ndim in (1, 2) and target.ndim < 2, "scores with the wrong shape")
    _must(scores.ndim == 1 or target.shape == scores.shape[:1], "targets with the wrong shape")
    taken = target[target != int(call["ignore_index"])]
    _within(taken, scores.shape[-1], negative=False)
    if "weight" in call:
        _must(call.tensor("weight").shape == scores.shape[-1:], "weights with the wrong shape")
    if "total_weight" in call:
        _must(
            call.tensor("total_weight").numel() == 1, "a total weight that is not a single number"
        )
        reduced = int(call["reduction"]) != 0
        shape = () if reduced else target.shape
        _must(call.tensor("grad_output").shape == shape, "a gradient with the wrong shape")


def pooled_indices(dimensions: int) -> Check:
    """Check that each index of a maximum lies in its plane."""

    def check(call: Call) -> None:
        operand, index = call.tensor("self"), call.tensor("indices")
        gradient = call.tensor("grad_output")
        _must(operand.ndim in (dimensions + 1, dimensions + 2), "the wrong number of dimensions")
        leading = operand.ndim - dimensions
        _must(gradient.shape == index.shape, "a gradient with the wrong shape")
        _must(index.shape[:leading] == operand.shape[:leading], "indices with the wrong shape")
        _within(index, math.prod(operand.shape[leading:]), negative=False)

    return check


def pooled_gradient(call: Call) -> None:
    """Check that the gradient has the planes of the pooled input."""
    operand, gradient = call.tensor("self"), call.tensor("grad_output")
    _must(
        operand.ndim in (3, 4) and gradient.ndim == operand.ndim, "the wrong number of dimensions"
    )
    _must(gradient.shape[:-2] == operand.shape[:-2], "a gradient with the wrong shape")
    _must(0 not in operand.shape + gradient.shape, "an empty operand")


def inside_storage(call: Call) -> None:
    """Check that sizes, strides and offset stay within the storage of the viewed tensor."""
    operand = call.tensor("self")
    sizes, strides = ([int(n) for n in call[name]] for name in ("size", "stride"))
    offset = operand.storage_offset()
    if "storage_offset" in call:
        offset = int(call["storage_offset"])
    _must(len(sizes) == len(strides), "the numbers of sizes and strides differ")
    _must(min([*sizes, *strides, offset], default=0) >= 0, "a negative size, stride or offset")
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    held = operand.untyped_storage().nbytes() // operand.element_size()
    _must(0 in sizes or last < held, "the view would exceed its storage")


def no_lowest_integer(call: Call) -> None:
    """Check that no operand is the lowest integer, whose negative overflows."""
    for value in call.values():
        if isinstance(value, torch.Tensor) and value.numel():
            if value.dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
                lowest = torch.iinfo(value.dtype).min
                _must(int(value.min()) > lowest, "the negative of the lowest integer overflows")
        elif type(value) is int:
            _must(
                value > -(2**31), "an integer that may be the lowest one, whose negative overflows"
            )


def same_shape(*names: str) -> Check:
    """Check that some operands have the same shape."""

    def check(call: Call) -> None:
        shapes = {call.tensor(name).shape for name in names}
        _must(len(shapes) == 1, f"{' and '.join(names)} differ in shape")

    return check


def normalized_channels(call: Call) -> None:
    """Check that statistics and weights, if given, have one element per channel."""
    operand = call.tensor("input")
    _must(operand.ndim >= 2, "no channels")
    channels = operand.shape[1:2]
    # Kernels read every tensor that is given, even an empty one; only evaluation saves empty
    # statistics.
    unread = () if "grad_out" not in call or call["train"] else ("save_mean", "save_invstd")
    for name in ("weight", "bias", "running_mean", "running_var", "save_mean", "save_invstd"):
        if name in call and not (name in unread and call.tensor(name).numel() == 0):
            _must(call.tensor(name).shape == channels, f"{name} has the wrong length")
    if "grad_out" in call:
        _must(call.tensor("grad_out").shape == operand.shape, "a gradient with the wrong shape")
        saved = ("save_mean", "save_invstd") if call["train"] else ("running_mean", "running_var")
        _must(all(n in call for n in saved), "no statistics")


def normalized_shape(call: Call) -> None:
    """Check that weights, statistics and gradient have the shapes implied by the operand."""
    operand = call.tensor("input")
    shape = torch.Size([int(n) for n in call["normalized_shape"]])
    _must(0 < len(shape) <= operand.ndim, "the wrong number of dimensions")
    outer = operand.shape[: operand.ndim - len(shape)]
    _must(operand.shape == outer + shape, "an operand with the wrong shape")
    for name in ("weight", "bias"):
        if name in call:
            _must(call.tensor(name).shape == shape, f"{name} has the wrong shape")
    for name in ("mean", "rstd"):
        if name in call:
            _must(call.tensor(name).numel() == math.prod(outer), f"{name} has the wrong shape")
    if "grad_out" in call:
        _must(call.tensor("grad_out").shape == operand.shape, "a gradient with the wrong shape")


def grouped(call: Call) -> None:
    """Check that the given sizes are the operand's, and divisible into groups."""
    operand = call.tensor("input")
    batch, channels, rest, groups = (int(call[name]) for name in ("N", "C", "HxW", "group"))
    _must(min(batch, channels, rest) >= 0 < groups, "a negative size")
    _must(
        operand.ndim >= 2 and operand.shape[:2] == (batch, channels),
        "sizes that are not the operand's",
    )
    _must(operand.numel() == batch * channels * rest, "sizes that are not the operand's")
    _must(channels % groups == 0, "channels that are not divisible into groups")
    for name in ("weight", "bias"):
        if name in call:
            _must(call.tensor(name).shape == (channels,), f"{name} has the wrong length")
    for name in ("mean", "rstd"):
        if name in call:
            _must(call.tensor(name).numel() == batch * groups, f"{name} has the wrong length")
    if "grad_out" in call:
        _must(call.tensor("grad_out").shape == operand.shape, "a gradient with the wrong shape")


def attention(call: Call) -> None:
    """Check that queries, keys and values fit together."""
    query, key, value = (call.tensor(name) for name in ("query", "key", "value"))
    _must(query.ndim == key.ndim == value.ndim == 4, "the wrong number of dimensions")
    _must(query.dtype == key.dtype == value.dtype, "operands with different dtypes")
    _must(
        query.shape[:2] == key.shape[:2] and key.shape == value.shape,
        "operands with different shapes",
    )
    _must(query.shape[3] == key.shape[3] and 0 not in query.shape + key.shape, "incompatible sizes")
    _must(all(t.stride(3) == 1 for t in (query, key, value)), "operands that are not contiguous")
    if "attn_mask" in call:
        mask = call.tensor("attn_mask")
        _must(mask.ndim in (2, 4), "a mask with the wrong number of dimensions")
        whole = torch.Size([*query.shape[:3], key.shape[2]])
        pairs = zip(reversed(mask.shape), reversed(whole), strict=False)
        _must(all(a in (1, b) for a, b in pairs), "a mask with the wrong shape")


def attention_backward(call: Call) -> None:
    """Check that saved results of the forward have the shapes it produces."""
    attention(call)
    query = call.tensor("query")
    for name in ("grad_out", "out"):
        _must(call.tensor(name).shape == query.shape, f"{name} has the wrong shape")
        _must(call.tensor(name).dtype == query.dtype, f"{name} has the wrong dtype")
    _must(call.tensor("logsumexp").shape == query.shape[:3], "logsumexp has the wrong shape")


def repeats(call: Call) -> None:
    """Check that counts are not negative, and add up to the given output size."""
    counts = call.tensor("repeats")
    _must(counts.ndim <= 1, "counts with the wrong shape")
    _must(_is_integral(counts), "a fraction")
    if counts.numel():
        _must(int(counts.min()) >= 0 and int(counts.max()) < 2**24, "an invalid count")
    if "output_size" in call:
        _must(
            int(counts.sum()) == int(call["output_size"]),
            "an output size that differs from the sum of the counts",
        )


def plain_scales(call: Call) -> None:
    """Check that given scales lie between 0.001 and 1000."""
    given: list[Any] = []
    for name in ("scale_factors", "scales", "scales_d", "scales_h", "scales_w"):
        if name in call:
            value = call[name]
            given += list(value) if isinstance(value, list | tuple) else [value]
    _must(
        all(1e-3 <= float(scale) <= 1e3 for scale in given), "a scale that does not match the sizes"
    )

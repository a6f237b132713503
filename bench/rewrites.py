"""Thirty rewrites, as in a library of fusions for language models.

Each is a pattern and its replacement, written once in terms of a few operators, which are spelled
as torch.export writes them (`aten`) or as dynamo does (`torch`). A GPT-2 contains the first few;
the others are searched for but not found, as is typical for a library.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from lazyfx.shared.pass_specs import PassSpec, replace_pattern

Value = Any
Rewrite = tuple[Callable[..., Value], Callable[..., Value]]


class Aten:
    """Operators as torch.export writes them."""

    def __init__(self) -> None:
        aten = torch.ops.aten
        self.add, self.sub, self.mul = aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor
        self.div, self.matmul, self.addmm = aten.div.Tensor, aten.matmul.default, aten.addmm.default
        self.linear, self.transpose = aten.linear.default, aten.transpose.int
        self.dropout, self.relu, self.silu = (
            aten.dropout.default,
            aten.relu.default,
            aten.silu.default,
        )
        self.sigmoid, self.tanh, self.erf = (
            aten.sigmoid.default,
            aten.tanh.default,
            aten.erf.default,
        )
        self.exp, self.log, self.rsqrt = aten.exp.default, aten.log.default, aten.rsqrt.default
        self.neg, self.log_softmax = aten.neg.default, aten.log_softmax.int
        self.softmax, self.masked_fill = aten.softmax.int, aten.masked_fill.Scalar
        self.gelu, self.sdpa = aten.gelu.default, aten.scaled_dot_product_attention.default
        self.cat, self.softplus, self.clamp = (
            aten.cat.default,
            aten.softplus.default,
            aten.clamp.default,
        )

    def scale(self, factor: float, x: Value) -> Value:
        return torch.ops.aten.mul.Tensor(x, factor)

    def shift(self, x: Value, by: float) -> Value:
        return torch.ops.aten.add.Tensor(x, by)

    def pow(self, x: Value, exponent: float) -> Value:
        return torch.ops.aten.pow.Tensor_Scalar(x, exponent)

    def view(self, x: Value, *shape: int) -> Value:
        return torch.ops.aten.view.default(x, list(shape))

    def flat(self, x: Value, width: int) -> Value:
        return torch.ops.aten.view.default(x, [-1, width])

    def mean(self, x: Value) -> Value:
        return torch.ops.aten.mean.dim(x, [-1], True)

    def heads(self, x: Value, batch: int, length: int, size: int) -> Value:
        x = torch.ops.aten.reshape.default(x, [batch, -1, length, size])
        x = torch.ops.aten.transpose.int(x, 1, 2)
        return torch.ops.aten.reshape.default(x, [batch, length, -1])

    def merged(self, x: Value, batch: int, length: int) -> Value:
        x = torch.ops.aten.permute.default(x, [0, 2, 1, 3])
        return torch.ops.aten.reshape.default(x, [batch, length, -1])

    def drop(self, x: Value) -> Value:
        return torch.ops.aten.dropout.default(x, 0.1, False)


class Torch:
    """Operators as dynamo writes them."""

    def __init__(self) -> None:
        self.add, self.sub, self.mul = operator.add, operator.sub, operator.mul
        self.div, self.matmul, self.addmm = operator.truediv, torch.matmul, torch.addmm
        self.linear = torch._C._nn.linear
        self.relu, self.silu, self.sigmoid = F.relu, F.silu, torch.sigmoid
        self.tanh, self.erf, self.exp, self.log = torch.tanh, torch.erf, torch.exp, torch.log
        self.rsqrt, self.neg, self.log_softmax = torch.rsqrt, operator.neg, F.log_softmax
        self.gelu, self.sdpa = F.gelu, torch._C._nn.scaled_dot_product_attention
        self.cat, self.softplus, self.clamp = torch.cat, F.softplus, torch.clamp

    def softmax(self, x: Value, dim: int) -> Value:
        return F.softmax(x, dim=dim)

    def masked_fill(self, x: Value, mask: Value, value: float) -> Value:
        return x.masked_fill(mask, value)

    def transpose(self, x: Value, first: int, second: int) -> Value:
        return x.transpose(first, second)

    def scale(self, factor: float, x: Value) -> Value:
        return factor * x

    def shift(self, x: Value, by: float) -> Value:
        return by + x

    def pow(self, x: Value, exponent: float) -> Value:
        return torch.pow(x, exponent)

    def view(self, x: Value, *shape: int) -> Value:
        return x.view(shape)

    def flat(self, x: Value, width: int) -> Value:
        return x.view(-1, width)

    def mean(self, x: Value) -> Value:
        return x.mean(-1, keepdim=True)

    def heads(self, x: Value, batch: int, length: int, size: int) -> Value:
        x = x.reshape(batch, -1, length, size).transpose(1, 2).contiguous()
        return x.reshape(batch, length, -1).contiguous()

    def merged(self, x: Value, batch: int, length: int) -> Value:
        return x.permute(0, 2, 1, 3).reshape(batch, length, -1)

    def drop(self, x: Value) -> Value:
        return F.dropout(x, 0.1, False, False)


def rewrites(  # noqa: C901 - a list
    o: Aten | Torch, batch: int, length: int, width: int, head: int
) -> list[Rewrite]:
    """The rewrites for a model whose values have these sizes."""

    def affine(inner: int, outer: int) -> Rewrite:
        def pattern(x: Value, weight: Value, bias: Value) -> Value:
            return o.view(o.addmm(bias, o.flat(x, inner), weight), batch, length, outer)

        return pattern, lambda x, weight, bias: o.add(o.matmul(x, weight), bias)

    def gelu_tanh(x: Value) -> Value:
        cubic = o.add(x, o.scale(0.044715, o.pow(x, 3.0)))
        return o.mul(o.scale(0.5, x), o.shift(o.tanh(o.scale(0.7978845608028654, cubic)), 1.0))

    def gelu_erf(x: Value) -> Value:
        return o.mul(o.scale(0.5, x), o.shift(o.erf(o.scale(0.7071067811865476, x)), 1.0))

    def attention(q: Value, k: Value, v: Value) -> Value:
        scores = o.scale(head**-0.5, o.matmul(q, o.transpose(k, -2, -1)))
        return o.matmul(o.softmax(scores, -1), v)

    def masked_attention(q: Value, k: Value, v: Value, mask: Value) -> Value:
        scores = o.div(o.matmul(q, o.transpose(k, -2, -1)), head**0.5)
        return o.matmul(o.softmax(o.add(scores, mask), -1), v)

    def filled_attention(q: Value, k: Value, v: Value, mask: Value) -> Value:
        scores = o.masked_fill(o.matmul(q, o.transpose(k, -2, -1)), mask, float("-inf"))
        return o.matmul(o.softmax(scores, -1), v)

    def rms_norm(x: Value, weight: Value) -> Value:
        return o.mul(weight, o.mul(x, o.rsqrt(o.shift(o.mean(o.pow(x, 2)), 1e-6))))

    def layer_norm(x: Value, weight: Value, bias: Value) -> Value:
        centred = o.sub(x, o.mean(x))
        scaled = o.mul(centred, o.rsqrt(o.shift(o.mean(o.pow(centred, 2)), 1e-5)))
        return o.add(o.mul(scaled, weight), bias)

    def rotary(x: Value, turned: Value, cos: Value, sin: Value) -> Value:
        return o.add(o.mul(x, cos), o.mul(turned, sin))

    def swiglu(x: Value, gate: Value, up: Value) -> Value:
        return o.mul(o.silu(o.linear(x, gate)), o.linear(x, up))

    def geglu(x: Value, gate: Value, up: Value) -> Value:
        return o.mul(o.gelu(o.linear(x, gate)), o.linear(x, up))

    return [
        (gelu_tanh, lambda x: o.gelu(x, approximate="tanh")),
        affine(width, 3 * width),
        affine(width, width),
        affine(width, 4 * width),
        affine(4 * width, width),
        (lambda x: o.heads(x, batch, length, head), lambda x: o.merged(x, batch, length)),
        (lambda x, y: o.add(o.drop(x), y), lambda x, y: o.add(x, y)),
        (lambda x, y: o.add(x, o.drop(y)), lambda x, y: o.add(x, y)),
        (gelu_erf, lambda x: o.gelu(x)),
        (attention, lambda q, k, v: o.sdpa(q, k, v, scale=head**-0.5)),
        (masked_attention, lambda q, k, v, mask: o.sdpa(q, k, v, mask)),
        (filled_attention, lambda q, k, v, mask: o.sdpa(q, k, v, mask)),
        (rms_norm, lambda x, w: o.mul(o.mul(x, w), o.rsqrt(o.shift(o.mean(o.pow(x, 2)), 1e-6)))),
        (layer_norm, lambda x, w, b: o.add(b, o.mul(w, o.sub(x, o.mean(x))))),
        (rotary, lambda x, t, cos, sin: o.add(o.mul(cos, x), o.mul(sin, t))),
        (swiglu, lambda x, g, u: o.mul(o.linear(x, u), o.silu(o.linear(x, g)))),
        (geglu, lambda x, g, u: o.mul(o.linear(x, u), o.gelu(o.linear(x, g)))),
        (lambda x: o.mul(x, o.sigmoid(x)), lambda x: o.silu(x)),
        (lambda x: o.mul(x, o.tanh(o.softplus(x))), lambda x: o.mul(o.tanh(o.softplus(x)), x)),
        (lambda x: o.scale(0.16666666666666666, o.mul(x, o.clamp(o.shift(x, 3.0), 0.0, 6.0))),
         lambda x: o.mul(x, o.scale(0.16666666666666666, o.clamp(o.shift(x, 3.0), 0.0, 6.0)))),
        (lambda x: o.log(o.softmax(x, -1)), lambda x: o.log_softmax(x, -1)),
        (lambda x: o.transpose(o.transpose(x, 1, 2), 1, 2), lambda x: x),
        (lambda x: o.neg(o.neg(x)), lambda x: x),
        (lambda x: o.exp(o.log(x)), lambda x: x),
        (lambda x, y: o.sub(x, o.neg(y)), lambda x, y: o.add(x, y)),
        (lambda x: o.drop(o.relu(x)), lambda x: o.relu(x)),
        (lambda x: o.relu(o.relu(x)), lambda x: o.relu(x)),
        (lambda x, w, b, y: o.add(o.relu(o.linear(x, w, b)), y),
         lambda x, w, b, y: o.add(y, o.relu(o.linear(x, w, b)))),
        (lambda x, y, z: o.cat([o.cat([x, y], -1), z], -1), lambda x, y, z: o.cat([x, y, z], -1)),
        (lambda x, w, v: o.add(o.matmul(x, w), o.matmul(x, v)),
         lambda x, w, v: o.matmul(x, o.add(w, v))),
    ]  # fmt: skip


def pipeline(o: Aten | Torch, sizes: Sequence[int]) -> list[str | PassSpec]:
    """The passes that the benchmark runs: the rewrites between cleanup and shapes."""
    batch, length, width, head = sizes
    return [
        "dead_code_elimination",
        "common_subexpression_elimination",
        "constant_fold",
        replace_pattern(*rewrites(o, batch, length, width, head)),
        "shape_propagation",
    ]

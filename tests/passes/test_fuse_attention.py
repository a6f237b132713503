"""Attention written by hand, as models write it, in every capture: fused, or rightly left alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from passes.captures import dynamo, exported
from passes.running import outputs, run
from torch import Tensor, nn
from torch.fx import GraphModule

from lazyfx_server.passes import Registry

FUSE = Registry().create("fuse_attention")
BATCH, HEADS, ROWS, COLUMNS, WIDTH = 2, 4, 5, 5, 8
LOWEST = torch.finfo(torch.float32).min


def _heads(x: Tensor, heads: int = HEADS) -> Tensor:
    return x.view(BATCH, -1, heads, WIDTH).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().view(BATCH, ROWS, -1)


def _causal(scores: Tensor) -> Tensor:
    return torch.ones(ROWS, COLUMNS, dtype=torch.bool).tril().expand(scores.shape)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return _joined(torch.softmax(_heads(q) @ _heads(k).transpose(-2, -1), dim=-1) @ _heads(v))


def usual(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = torch.matmul(_heads(q), _heads(k).transpose(2, 3)) / math.sqrt(WIDTH)
    weights = F.softmax(scores + mask, dim=-1, dtype=torch.float32).to(q.dtype)
    weights = F.dropout(weights, p=0.1, training=False)
    return _joined(torch.matmul(weights, _heads(v)))


def grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    def repeated(x: Tensor) -> Tensor:
        x = _heads(x, 1)
        spread = x[:, :, None].expand(BATCH, 1, HEADS, x.shape[-2], WIDTH)
        return spread.reshape(BATCH, HEADS, x.shape[-2], WIDTH)

    k, v = k[..., :WIDTH], v[..., :WIDTH]
    scores = torch.matmul(_heads(q), repeated(k).transpose(2, 3)) * WIDTH**-0.5 + mask
    return _joined(torch.matmul(scores.softmax(-1), repeated(v)))


def spread(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """One key and value for all heads, which the product spreads."""
    k, v = _heads(k[..., :WIDTH], 1), _heads(v[..., :WIDTH], 1)
    return _joined(torch.softmax(_heads(q) @ k.mT * 0.3 + mask, -1) @ v)


def two_masks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """A bias for each head, then a mask for each window, in five dimensions, as Swin has it."""
    scores = _heads(q) @ _heads(k).transpose(-1, -2) * 0.3
    scores = scores + mask[0, 0]
    scores = scores.view(1, BATCH, HEADS, ROWS, COLUMNS) + mask[:, 0].unsqueeze(1).unsqueeze(0)
    scores = scores.view(-1, HEADS, ROWS, COLUMNS)
    return _joined(F.softmax(scores, -1) @ _heads(v))


def in_place(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = torch.matmul(_heads(q), _heads(k).transpose(2, 3))
    scores /= 3.0
    scores += mask
    scores = scores.masked_fill_(~_causal(scores), float("-inf"))
    return _joined(torch.matmul(torch.softmax(scores, -1), _heads(v)))


def hidden(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = mask + torch.matmul(_heads(q) * 0.3, _heads(k).permute(0, 1, 3, 2))
    scores = torch.where(_causal(scores), scores, LOWEST)
    return _joined(torch.matmul(scores.softmax(-1), _heads(v)))


def flat(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Heads and batch in one dimension, a summand in the product, as Bloom has it."""
    q, k, v = (_heads(x).reshape(BATCH * HEADS, -1, WIDTH) for x in (q, k, v))
    bias = mask.expand(BATCH, HEADS, ROWS, COLUMNS).reshape(BATCH * HEADS, ROWS, COLUMNS)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=1.0, alpha=0.3)
    weights = scores.view(BATCH, HEADS, ROWS, COLUMNS).softmax(-1)
    weights = weights.view(BATCH * HEADS, ROWS, COLUMNS)
    return _joined(torch.bmm(weights, v).view(BATCH, HEADS, ROWS, WIDTH))


def of_columns(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """A key that was never a row, and a scale that is a tensor."""
    k = k.view(BATCH, -1, HEADS, WIDTH).permute(0, 2, 3, 1)
    scores = _heads(q) @ k / torch.sqrt(torch.tensor(float(WIDTH)))
    return (torch.softmax(scores + mask, 3) @ _heads(v)).view(BATCH * HEADS, ROWS, WIDTH)


FUSED = (plain, usual, grouped, spread, two_masks, in_place, hidden, flat, of_columns)


def dropped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    weights = F.dropout(torch.softmax(_heads(q) @ _heads(k).mT + mask, -1), 0.5, training=True)
    return _joined(weights @ _heads(v))


def returned(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.softmax(_heads(q) @ _heads(k).mT + mask, -1)
    return weights @ _heads(v), weights


def capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = torch.tanh(_heads(q) @ _heads(k).mT / 5.0) * 5.0
    return torch.softmax(scores + mask, -1) @ _heads(v)


def scaled_late(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.softmax((_heads(q) @ _heads(k).mT + mask) * 0.5, -1) @ _heads(v)


def hidden_a_little(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = _heads(q) @ _heads(k).mT + mask
    return scores.masked_fill(~_causal(scores), -2.0).softmax(-1) @ _heads(v)


def over_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.softmax(_heads(q) @ _heads(k).mT + mask, -2) @ _heads(v)


def mask_written(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    mask = mask.clone()
    weights = torch.softmax(_heads(q) @ _heads(k).mT + mask, -1)
    mask.mul_(0.5)
    return weights @ _heads(v) + mask.sum()


LEFT = (dropped, returned, capped, scaled_late, hidden_a_little, over_queries, mask_written)


class Model(nn.Module):
    """Three layers, and attention over what they make."""

    def __init__(self, attention: Callable[..., Any]) -> None:
        super().__init__()
        size = HEADS * WIDTH
        self.q, self.k, self.v = (nn.Linear(size, size) for _ in range(3))
        self.attention = attention

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        return self.attention(self.q(x), self.k(x), self.v(x), mask)


def captured(attention: Callable[..., Any], kind: str) -> tuple[nn.Module, GraphModule, list[Any]]:
    torch.manual_seed(0)
    model = Model(attention)
    mask = torch.randn(BATCH, 1, ROWS, COLUMNS)
    mask[:, :, :, -1] = LOWEST
    given = {"x": torch.randn(BATCH, ROWS, HEADS * WIDTH), "mask": mask}
    if kind == "dynamo":
        return model, *dynamo(model, given)
    return model, *exported(model, given, decomposed=kind == "decomposed")


def called(module: GraphModule, inputs: list[Any]) -> list[Tensor]:
    if len(inputs) == 1:
        return outputs(module, (), inputs[0])
    return outputs(module, tuple(inputs), {})


def gradients(module: GraphModule, inputs: list[Any]) -> list[Tensor]:
    """Of a weighted sum of the results, with respect to the inputs, and parameters inside."""
    flat = list(inputs[0].values()) if len(inputs) == 1 else inputs
    leaves = [t.detach().clone().requires_grad_() for t in flat]
    named = dict(zip(inputs[0], leaves, strict=True)) if len(inputs) == 1 else {}
    result = module(**named) if named else module(*leaves)
    total = sum(t.square().sum() for t in torch.utils._pytree.tree_leaves(result))
    return list(torch.autograd.grad(total, [*leaves, *module.parameters()], allow_unused=True))


# The last decomposes views and in-place calls; where there are none it adds nothing.
ALL = [
    *((attention, kind) for attention in FUSED for kind in ("export", "dynamo")),
    *((attention, "decomposed") for attention in (usual, grouped, hidden)),
]


@pytest.mark.parametrize(("attention", "kind"), ALL, ids=lambda v: getattr(v, "__name__", v))
def test_it_is_found_however_it_is_written(attention: Callable[..., Any], kind: str) -> None:
    _, module, inputs = captured(attention, kind)
    ran = run(module, FUSE)
    assert ran.note == "1 attentions fused"
    assert not any("softmax" in str(node.target) for node in ran.module.graph.nodes)
    for one, other in zip(called(ran.module, inputs), called(module, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(gradients(ran.module, inputs), gradients(module, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("attention", LEFT, ids=lambda f: f.__name__)
def test_what_is_something_else_stays(attention: Callable[..., Any]) -> None:
    _, module, _ = captured(attention, "export" if attention is dropped else "dynamo")
    ran = run(module, FUSE)
    assert (ran.changed, ran.note) == (False, "")

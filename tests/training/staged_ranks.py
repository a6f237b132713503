"""A job of two ranks, each of which bakes something of its own into each of twelve graphs."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch.nn import functional

dist.init_process_group("gloo")
RANK = dist.get_rank()
assert int(os.environ["LOCAL_RANK"]) == RANK
assert sys.argv[1:] == ["--name", "value"]
SEED = [RANK + 100]
dist.broadcast_object_list(SEED, src=0)
OWN_GROUP = [dist.new_group([rank]) for rank in range(dist.get_world_size())][RANK]


def the_rank_itself(x: torch.Tensor) -> torch.Tensor:
    return torch.add(x, RANK)


def a_seed(x: torch.Tensor) -> torch.Tensor:
    return x + torch.full_like(x, 1234.5 + RANK)


def a_batch_size(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x[:, 1:])


def a_path(x: torch.Tensor) -> torch.Tensor:
    torch._assert_async((x.sum() * 0 == 0).all(), f"/data/shard-{RANK}/broken")
    return x.cos()


def a_dtype(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


def a_slice(x: torch.Tensor) -> torch.Tensor:
    return x[:, 2 * RANK : 2 * RANK + 2].exp()


def a_frozen_input(x: torch.Tensor) -> torch.Tensor:
    return x.tan()


def a_branch(x: torch.Tensor) -> torch.Tensor:
    y = x.sigmoid()
    if RANK == 0:
        y = y.log()
    return y.neg()


def another_function(x: torch.Tensor) -> torch.Tensor:
    return (functional.gelu if RANK else functional.silu)(x).abs()


def a_stride(x: torch.Tensor) -> torch.Tensor:
    return x.square()


def a_dropout_rate(x: torch.Tensor) -> torch.Tensor:
    return functional.dropout(x, p=0.1 * (RANK + 1))


def a_split(x: torch.Tensor) -> torch.Tensor:
    first, _ = torch.split(x, [1 + RANK, 7 - RANK], dim=1)
    return first


def the_same(x: torch.Tensor) -> torch.Tensor:
    """Nothing of the rank: what another rank has sent, and a group that only its name differs in."""
    return funcol.all_reduce(x * SEED[0], "sum", OWN_GROUP)


def inputs(function: object) -> torch.Tensor:
    if function is a_batch_size:
        return torch.ones(4 + RANK, 8)
    if function is a_dtype:
        return torch.ones(4, 8, dtype=(torch.float32, torch.float64)[RANK])
    if function is a_frozen_input:
        return torch.ones(4, 8, requires_grad=RANK == 0)
    if function is a_stride:
        return torch.ones(8, 8).tril().t() if RANK else torch.ones(8, 8).tril()
    return torch.ones(4, 8)


CASES = (
    the_rank_itself,
    a_seed,
    a_batch_size,
    a_path,
    a_dtype,
    a_slice,
    a_frozen_input,
    a_branch,
    another_function,
    a_stride,
    a_dropout_rate,
    a_split,
    the_same,
)
for case in CASES:
    torch.compile(case, backend="lazyfx")(inputs(case))
sys.stdout.write(f"rank {RANK} has ended\n")

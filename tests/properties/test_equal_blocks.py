"""Blocks of a graph become calls of one graph only if they are equal, and then compute the same."""

from __future__ import annotations

import copy

import pytest
import torch
from block_pairs import DIFFERENT, EQUAL, OTHER_ORDER, UNSUITED, Pair, build, real_inputs

from lazyfx_server.jobs.native.equal_blocks.outlining import call_equal_blocks_once

_PAIRS = 200


def test_equal_blocks_become_calls_that_compute_the_same() -> None:
    for seed in range(6):
        module = build(OTHER_ORDER if seed % 3 == 0 else EQUAL, seed)
        whole, nodes = copy.deepcopy(module), len(module.graph.nodes)
        (found,) = call_equal_blocks_once(module)
        assert found.calls == 2
        assert len(module.graph.nodes) < nodes - found.nodes
        calls = module.graph.find_nodes(
            op="call_function", target=torch.ops.higher_order.invoke_subgraph
        )
        assert len({str(call.args[0]) for call in calls}) == 1
        given = real_inputs(module, seed)
        assert torch.equal(module(*given)[0], whole(*given)[0])


@pytest.mark.parametrize("kind", [*DIFFERENT, *UNSUITED])
def test_nearly_equal_blocks_stay(kind: str) -> None:
    assert_stay(kind, range(1))


@pytest.mark.long
def test_none_of_200_nearly_equal_pairs_is_merged() -> None:
    for kind in DIFFERENT:
        assert_stay(kind, range(1, 2 + _PAIRS // len(DIFFERENT)))


def assert_stay(kind: str, seeds: range) -> None:
    pair = {**DIFFERENT, **UNSUITED}[kind]
    for seed in seeds:
        module = build(pair, seed)
        before = str(module.graph)
        assert call_equal_blocks_once(module) == []
        assert str(module.graph) == before
        if kind in DIFFERENT and pair.first and "write to an operand" not in kind:
            # It is the difference that keeps them apart.
            assert call_equal_blocks_once(build(Pair(pair.first, pair.first), seed))

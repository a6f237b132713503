"""Random modules after random pipelines compute what they computed before."""

from __future__ import annotations

import pytest
import torch
from numerics.random_modules import random_program
from numerics.random_runs import by_client, by_passes, check, exported, findings, symbolic, traced

import lazyfx

pytestmark = pytest.mark.filterwarnings("ignore")


def wrong_in_passes(seeds: range) -> list[str]:
    return [found for seed in seeds for found in findings(by_passes, seed, (symbolic, traced))]


def wrong_through_a_server(client: lazyfx.Client, seeds: range) -> list[str]:
    compile_ = by_client(client)
    return [
        found for seed in seeds for found in findings(compile_, seed, (symbolic, traced, exported))
    ]


@pytest.mark.long
def test_some_random_modules() -> None:
    assert not wrong_in_passes(range(40))


@pytest.mark.long
def test_some_random_modules_through_a_server(client: lazyfx.Client) -> None:
    assert not wrong_through_a_server(client, range(100, 106))


@pytest.mark.slow
def test_many_random_modules() -> None:
    assert not wrong_in_passes(range(1000, 3000))


@pytest.mark.slow
def test_many_random_modules_through_a_server(client: lazyfx.Client) -> None:
    assert not wrong_through_a_server(client, range(5000, 5200))


@pytest.mark.long
def test_the_comparison_notices_a_lost_write() -> None:
    program = next(p for p in map(random_program, range(1000)) if "state.add_" in p.text)

    def lose(captured: torch.fx.GraphModule, _: str) -> tuple[object, torch.fx.GraphModule]:
        for node in list(captured.graph.nodes):
            if node.op == "call_method" and node.target.endswith("_"):
                node.replace_all_uses_with(node.args[0])
                captured.graph.erase_node(node)
        captured.recompile()
        return captured, captured

    assert check(lose, program, symbolic, [("", 0.0)], ("apart",))

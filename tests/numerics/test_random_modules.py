"""Random modules after random pipelines compute what they computed before."""

from __future__ import annotations

import pytest
import torch
from numerics.random_modules import random_program
from numerics.random_runs import by_client, by_passes, check, exported, findings, symbolic, traced

import lazyfx

pytestmark = pytest.mark.filterwarnings("ignore")


def check_passes(seeds: range, at_least: int) -> None:
    check_all([findings(by_passes, seed, (symbolic, traced)) for seed in seeds], at_least)


def check_through_a_server(client: lazyfx.Client, seeds: range, at_least: int) -> None:
    compile_ = by_client(client)
    check_all([findings(compile_, seed, (symbolic, traced, exported)) for seed in seeds], at_least)


def check_all(found: list[tuple[list[str], int]], at_least: int) -> None:
    assert not [each for wrong, _ in found for each in wrong]
    assert sum(compared for _, compared in found) >= at_least


@pytest.mark.long
def test_some_random_modules() -> None:
    check_passes(range(40), at_least=150)


@pytest.mark.long
def test_some_random_modules_through_a_server(client: lazyfx.Client) -> None:
    check_through_a_server(client, range(100, 106), at_least=8)


@pytest.mark.slow
def test_many_random_modules() -> None:
    check_passes(range(1000, 3000), at_least=2000)


@pytest.mark.slow
def test_many_random_modules_through_a_server(client: lazyfx.Client) -> None:
    check_through_a_server(client, range(5000, 5200), at_least=240)


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

    assert check(lose, program, symbolic, [("", 0.0)], ("apart",))[0]

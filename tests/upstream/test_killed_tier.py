"""Ranks that know a tier and the central server behind it, and lose the tier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from harness import DCE, graph_of, metrics, total
from servers import RunningServer

import lazyfx
from lazyfx_server.security.signing import read_keys

RANKS = 8
GRAPHS = 6


def test_ranks_whose_tier_is_killed_go_on_at_the_central_server(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    key_file = tmp_path / "signing.pem"
    one = ("--workers", "1")
    central = launch(*one, "--signing-key", str(key_file), store=tmp_path / "central")
    pinned = read_keys(key_file)[0].public_key().public_bytes_raw().hex()
    tier = launch(*one, "--upstream", central.address, store=tmp_path / "tier")
    both = f"{tier.address},{central.address}"
    graphs = [graph_of(float(each)) for each in range(GRAPHS)]
    half = threading.Barrier(RANKS + 1)

    def rank(number: int) -> list[str]:
        texts = []
        with lazyfx.connect(both, balance="in_order", verify_keys=pinned) as client:
            handles = []
            for each in range(GRAPHS):
                if each == GRAPHS // 2:
                    half.wait(60)  # killed while some ask
                handles.append(client.compile(graphs[each], [DCE]))
            for each, module in enumerate(handles):
                # Handles of the tier work at the central server.
                assert torch.equal(module(torch.ones(2)), torch.full((2,), 2.0 * each))
                texts.append(module.code)
        return texts

    with ThreadPoolExecutor(RANKS) as pool:
        ranks = [pool.submit(rank, number) for number in range(RANKS)]
        half.wait(60)
        asked = total(
            metrics(tier.metrics_url), "lazyfx_upstream_requests_total", what="compile",
            outcome="answered",
        )  # fmt: skip
        tier.process.kill()
        assert len({tuple(each.result()) for each in ranks}) == 1
    # All went to the tier first, and each graph was compiled once, whoever asked.
    assert asked >= GRAPHS // 2
    found = metrics(central.metrics_url)
    assert total(found, "lazyfx_lookups_total", result="miss") == GRAPHS

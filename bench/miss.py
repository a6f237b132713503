"""(c) A miss, seen by the client, compared with the same lazy pipeline in the client's process."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from time import perf_counter

from torch.fx import GraphModule, Node

import lazyfx
from bench.graphs import Case
from bench.passes import LocalPipeline
from bench.rounds import Row, take_turns

TARGET = 1.25


def measure(case: Case, server: str, rounds: int) -> list[Row]:
    """A different, new graph in each round, and the local run."""
    local = LocalPipeline(case)
    change = changes(case.module)
    section = f"(c) miss, {case.name}"
    overhead: list[float] = []
    with lazyfx.connect(server) as client:

        def miss() -> float:
            next(change)
            started = perf_counter()
            handle = client.compile(case.module, case.passes)
            seconds = perf_counter() - started
            if handle.cache.status != "miss":
                raise RuntimeError(f"a {handle.cache.status} where a miss was due")
            overhead.append(seconds - handle.report.pass_seconds)
            return seconds

        # Warm up: any worker may be new, so each runs the job first.
        for _ in range(4):
            miss()
        in_passes, ours = take_turns([local.lazily, miss], rounds)
    outside = overhead[-rounds:]
    return [
        Row(section, "lazy pipeline in the client's process", in_passes),
        Row(section, "miss, client to answer", ours, against=in_passes, target=TARGET),
        Row(section, "of that outside of passes", outside),
    ]


def changes(module: GraphModule) -> Iterator[None]:
    """At each step, change a literal of the graph to a new value."""
    node, place = next(
        (node, i)
        for node in module.graph.nodes
        for i, argument in enumerate(node.args)
        if _is_epsilon(node, argument)
    )
    for step in itertools.count(1):
        node.update_arg(place, math.ldexp(step, -40))
        yield


def _is_epsilon(node: Node, argument: object) -> bool:
    return "layer_norm" in str(node.target) and isinstance(argument, float)

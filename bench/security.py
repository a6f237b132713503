"""The cost of security: checks relative to decoding, and confined workers relative to unconfined.

python -m bench.security
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable
from functools import partial
from time import perf_counter, process_time

import torch
from torch.fx._lazy_graph_module import _LazyGraphModule

from bench.graphs import gpt2_cases
from lazyfx.shared import wire
from lazyfx.v1 import graph_pb2
from lazyfx_server.execution import ForkServer, ProcessExecutor, start_forkserver
from lazyfx_server.jobs.graph_job import run_job
from lazyfx_server.security.checked_graph import check_message
from lazyfx_server.security.sandbox import Policy, available, readable_paths
from lazyfx_server.workers.confining import confine

_ROUNDS = 15
_STARTS = 8
_CHECKS_TARGET, _START_TARGET = 0.15, 30.0


def checking() -> list[tuple[str, list[float]]]:
    """For each round, the time of the checks divided by the time of decoding."""
    rows = []
    for case in gpt2_cases():
        encoded = wire.encode(case.module)
        body = graph_pb2.GraphBody.FromString(encoded.body)

        def check(body: graph_pb2.GraphBody = body) -> None:
            check_message(body)

        def decode(data: bytes = encoded.body) -> None:
            wire.decode(wire.check_canonical(data), module_class=_LazyGraphModule)

        check(), decode()
        rows.append((case.name, [_seconds(check) / _seconds(decode) for _ in range(_ROUNDS)]))
    return rows


def _seconds(work: Callable[[], None]) -> float:
    started = process_time()
    for _ in range(3):
        work()
    return process_time() - started


async def starting() -> list[float]:
    """How many milliseconds longer a confined worker takes to start than an unconfined one."""
    forkserver = start_forkserver(["lazyfx_server.jobs.preload"])
    policy = Policy(available(), 8 * 2**30, readable_paths())
    await _start(forkserver, None)  # the first one waits for the imports
    longer = []
    for turn in range(_STARTS):
        peers = [partial(confine, policy), None]
        taken = {}
        for peer in peers if turn % 2 else reversed(peers):
            taken[peer is None] = await _start(forkserver, peer)
        longer.append(1000 * (taken[False] - taken[True]))
    return longer


async def _start(forkserver: ForkServer, initializer: Callable[[], None] | None) -> float:
    executor = ProcessExecutor(run_job, processes=forkserver, workers=1, initializer=initializer)
    started = perf_counter()
    await executor.start()
    seconds = perf_counter() - started
    await executor.close()
    return seconds


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    longer = asyncio.run(starting())
    _print("confined worker start, ms longer", longer, _START_TARGET)
    for name, ratios in checking():
        _print(f"checks / decode, {name}", ratios, _CHECKS_TARGET)


def _print(what: str, samples: list[float], target: float) -> None:
    middle = statistics.median(samples)
    verdict = "met" if middle <= target else "missed"
    print(
        f"{what}: median {middle:.3g}, {min(samples):.3g} to {max(samples):.3g}; "
        f"target {target:g}, {verdict}"
    )


if __name__ == "__main__":
    main()

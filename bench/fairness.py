"""What a flood of one tenant costs another: its misses, quiet and during the flood.

    python -m bench.fairness [--rounds 3] [--flood 200] [--misses 40] [--json FILE]

Tenant B compiles one graph after another, each a miss. In every round it does so alone, and then
while tenant A has `--flood` misses of the same size in flight. The output has B's median and 95th
percentile in both cases. B's share of the workers is half, so it should wait for at most the job
that runs when it asks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from torch.fx import Graph, GraphModule
from torch.nn import Module

from bench.servers import running_lazyfx
from lazyfx.shared import wire
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub

TARGET_RATIO = 2.0
_PASSES = ("dead_code_elimination", "common_subexpression_elimination")
_SECONDS = 600.0


@dataclass(frozen=True)
class Latencies:
    """Seconds of the misses of one tenant in one window."""

    seconds: Sequence[float]

    @property
    def p50(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        """The 95th percentile."""
        return statistics.quantiles(self.seconds, n=20)[18]


class _Tenant:
    """A tenant with a connection of its own, and graphs that nobody has compiled before."""

    def __init__(self, address: str, token: str, requests: Iterator[pb.CompileRequest]) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._stub = GraphCompilerStub(grpc.insecure_channel(address, options=options))
        self._metadata = [("authorization", f"Bearer {token}")]
        self._requests = requests

    def miss(self) -> float:
        """Compile the next graph; returns the seconds."""
        request = next(self._requests)
        started = time.perf_counter()
        answer = self._stub.Compile(request, metadata=self._metadata, timeout=_SECONDS)
        assert answer.cache.status == pb.CACHE_STATUS_MISS
        return time.perf_counter() - started

    def flood(self, count: int) -> list[grpc.Future]:
        """Begin to compile as many graphs at once."""
        requests = list(itertools.islice(self._requests, count))
        compile_ = self._stub.Compile
        return [compile_.future(r, metadata=self._metadata, timeout=_SECONDS) for r in requests]


def _requests(nodes: int) -> Iterator[pb.CompileRequest]:
    """Requests for graphs of one size, each with another digest."""
    for number in itertools.count():
        graph = Graph()
        value = graph.placeholder("x")
        for step in range(nodes):
            value = graph.call_method("mul", (value, float(number * nodes + step)))
        graph.output(value)
        encoded = wire.encode(GraphModule(Module(), graph))
        request = pb.CompileRequest(
            graph_digest=graph_pb2.Digest(sha256=encoded.digest, size_bytes=len(encoded.body)),
            passes=[pb.PassSpec(name=name) for name in _PASSES],
        )
        request.graph.CopyFrom(encoded.message())
        yield request


def measure(
    folder: Path, *, rounds: int, flood: int, misses: int, nodes: int
) -> tuple[list[Latencies], list[Latencies]]:
    """B's misses in each round: alone, and during A's flood."""
    tokens = folder / "tokens"
    shown = {name: _new_token(tokens, name) for name in ("a", "b")}
    requests = _requests(nodes)
    quiet, flooded = [], []
    with running_lazyfx(folder / "store", "--tokens", str(tokens)) as server:
        a, b = (_Tenant(server.address, shown[name], requests) for name in ("a", "b"))
        for _ in range(10):
            a.miss(), b.miss()
        for _ in range(rounds):
            quiet.append(Latencies([b.miss() for _ in range(misses)]))
            pending = a.flood(flood)
            flooded.append(Latencies([b.miss() for _ in range(misses)]))
            unfinished = sum(not call.done() for call in pending)
            if not unfinished:
                raise SystemExit("the flood ended before B's misses; use a larger --flood")
            for call in pending:
                call.result()
    return quiet, flooded


def _new_token(file: Path, tenant: str) -> str:
    command = [sys.executable, "-m", "lazyfx.cli", "token", tenant, "--file", str(file)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.fairness", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flood", type=int, default=200)
    parser.add_argument("--misses", type=int, default=40)
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        quiet, flooded = measure(
            Path(folder), rounds=options.rounds, flood=options.flood, misses=options.misses,
            nodes=options.nodes,
        )  # fmt: skip
    ratios = [during.p95 / before.p95 for before, during in zip(quiet, flooded, strict=True)]
    for before, during, ratio in zip(quiet, flooded, ratios, strict=True):
        sys.stdout.write(
            f"quiet p50 {1e3 * before.p50:6.1f} p95 {1e3 * before.p95:6.1f} ms, flooded "
            f"p50 {1e3 * during.p50:6.1f} p95 {1e3 * during.p95:6.1f} ms: p95 x {ratio:.2f}\n"
        )
    middle = statistics.median(ratios)
    verdict = "met" if middle <= TARGET_RATIO else "missed"
    sys.stdout.write(f"median p95 x {middle:.2f}, target <= {TARGET_RATIO:.2f}: {verdict}\n")
    if options.json:
        options.json.write_text(json.dumps({"ratios": ratios}) + "\n")


if __name__ == "__main__":
    main()

"""What must hold after every hostile request, whatever became of it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from harness import (
    DCE,
    PATIENCE,
    Refusal,
    artifact,
    compile_request,
    connected,
    graph_of,
    long_graph,
    metrics,
    refusal_of,
    request_of_body,
    total,
    wait_until,
    worker_pids,
)

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

_GROWTH_BYTES = 64 * 2**20
# Fetched of each accepted graph: everything that is made from generated source.
TOUCHED = (pb.ARTIFACT_KIND_CODE, pb.ARTIFACT_KIND_PICKLE, pb.ARTIFACT_KIND_PICTURE)


@dataclass
class Watched:
    """A server under attack."""

    server: Any
    marker: Path
    key: bytes
    resident: int
    series: frozenset[object]

    @classmethod
    def start(cls, server: Any, folder: Path) -> Watched:
        with connected(server.address) as stub:
            key = stub.Compile(compile_request(graph_of(1.25), DCE)).module_key
            for kind in TOUCHED:
                artifact(stub, key, kind)
            # What passes load when they first run does not count as growth.
            for description in stub.ListPasses(pb.ListPassesRequest()).passes:
                with contextlib.suppress(grpc.RpcError):  # some need options to be sensible
                    stub.Compile(compile_request(long_graph(500), description.name))
        watched = cls(server, folder / "marker", key, 0, frozenset())
        watched.resident = watched._resident_bytes()
        watched.series = watched._series()
        return watched

    def ask(
        self, body: bytes, names: graph_pb2.Presentation | None, *passes: str
    ) -> Refusal | pb.CompileResponse:
        return self.send(request_of_body(body, names, *passes))

    def send(self, request: pb.CompileRequest) -> Refusal | pb.CompileResponse:
        """Compile, and touch the result under the request's names if there is one."""
        try:
            with connected(self.server.address) as stub:
                response = stub.Compile(request, timeout=PATIENCE)
                names = (
                    request.graph.presentation if request.graph.HasField("presentation") else None
                )
                for kind in TOUCHED:
                    artifact(stub, response.module_key, kind, names)
        except grpc.RpcError as error:
            return refusal_of(error)
        return response

    def entries(self) -> int:
        """Entries of the store, once what is being written behind an answer is counted."""
        with connected(self.server.address) as stub:
            counts = [-1]
            while counts[-1:] * 3 != counts[-3:] or counts[-1] < 0:
                counts.append(int(stub.GetStats(pb.GetStatsRequest()).store.entries))
                time.sleep(0.02)
            return counts[-1]

    def check_unharmed(self) -> None:
        assert not self.marker.exists()
        assert self.server.process.poll() is None
        with connected(self.server.address) as stub:
            request = compile_request(graph_of(1.25), DCE, inline=False)
            response = stub.Compile(request, timeout=PATIENCE)
            assert response.module_key == self.key
            assert response.cache.status == pb.CACHE_STATUS_HIT
        samples = metrics(self.server.metrics_url)
        assert total(samples, "lazyfx_worker_restarts_total") == 0
        assert self._series() == self.series
        wait_until(
            lambda: self._resident_bytes() < self.resident + _GROWTH_BYTES, "memory given back"
        )
        self.resident = max(self.resident, self._resident_bytes())

    def _series(self) -> frozenset[object]:
        """Names and labels of all samples; devices and requests are counted before a test."""
        return frozenset(metrics(self.server.metrics_url))

    def _resident_bytes(self) -> int:
        pids = (self.server.pid, *worker_pids(self.server.pid))
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
        return pages * 4096

"""What must hold after every hostile request, whatever became of it."""

from __future__ import annotations

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
    metrics,
    refusal_of,
    request_of_body,
    total,
    worker_pids,
)
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

_GROWTH_BYTES = 64 * 2**20
# What an accepted graph is touched as: everything that is made from generated source.
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
        with connected(self.server.address) as stub:
            return int(stub.GetStats(pb.GetStatsRequest()).store.entries)

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
        assert self._resident_bytes() < self.resident + _GROWTH_BYTES

    def _series(self) -> frozenset[object]:
        """Names and labels of all samples; devices and requests are counted before a test."""
        return frozenset(metrics(self.server.metrics_url))

    def _resident_bytes(self) -> int:
        pids = (self.server.pid, *worker_pids(self.server.pid))
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
        return pages * 4096

"""The store's folder is removed under a running server, with keys, ledger and all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness import (
    CSE,
    DCE,
    artifact,
    compile_request,
    connected,
    graph_of,
    metrics,
    total,
    wait_until,
)

from lazyfx.v1 import compiler_pb2 as pb

if TYPE_CHECKING:
    from servers import RunningServer


def test_a_server_goes_on_without_its_folder(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    server = launch("--workers", "1", store=store)

    def entries() -> float:
        return total(metrics(server.metrics_url), "lazyfx_store_entries", tier="disk")

    with connected(server.address) as stub:
        first = stub.Compile(compile_request(graph_of(1.0), DCE))
        artifact(stub, first.module_key, pb.ARTIFACT_KIND_CODE)
        wait_until(lambda: entries() >= 3, "entries on the disk")
        shutil.rmtree(store)
        assert entries() == 0
        again = stub.Compile(compile_request(graph_of(1.0), DCE))
        assert again.cache.status == pb.CACHE_STATUS_HIT
        for kind in (pb.ARTIFACT_KIND_CODE, pb.ARTIFACT_KIND_PICTURE, pb.ARTIFACT_KIND_GRAPH):
            made = artifact(stub, first.module_key, kind)
            assert made.trailer.signature.signature
        other = stub.Compile(compile_request(graph_of(2.0), DCE, CSE))
        assert other.cache.status == pb.CACHE_STATUS_MISS
        wait_until(lambda: entries() >= 2, "entries on the disk again")
        assert stub.GetServerInfo(pb.GetServerInfoRequest()).verify_keys
    wait_until((store / ".ledger" / "counts.json").exists, "the ledger again")
    samples = metrics(server.metrics_url)
    assert total(samples, "lazyfx_requests_total", code="INTERNAL") == 0
    assert total(samples, "lazyfx_store_errors_total") == 0
    keys = [line for line in server.log if "key file" in line]
    assert len(keys) == 1

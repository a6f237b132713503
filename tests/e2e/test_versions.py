"""Servers with different versions on one store never serve each other's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import store_servers
from harness import DCE, artifact, compile_request, connected, graph_of, refused, wait_until
from servers import RunningServer

from lazyfx.v1 import compiler_pb2 as pb

pytestmark = pytest.mark.long

MISS, HIT = pb.CACHE_STATUS_MISS, pb.CACHE_STATUS_HIT


@pytest.fixture
def other_version(tmp_path: Path) -> dict[str, str]:
    """Variables of a server that is installed as another version of lazyfx."""
    folder = tmp_path / "other" / "lazyfx-9.9.9.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: lazyfx\nVersion: 9.9.9\n")
    return {"PYTHONPATH": str(folder.parent)}


@pytest.fixture
def redis_server() -> Iterator[store_servers.Server]:
    server = store_servers.redis()
    yield server
    server.kill()


def test_two_versions_side_by_side_on_a_redis(
    launch: Callable[..., RunningServer],
    other_version: dict[str, str],
    redis_server: store_servers.Server,
    tmp_path: Path,
) -> None:
    flags = (
        "--workers", "1",
        "--store", f"redis://127.0.0.1:{redis_server.port}/0", "--store-wait-seconds", "10",
        "--tenant-secret", str(tmp_path / "tenants.key"),
        "--signing-key", str(tmp_path / "signing.pem"),
    )  # fmt: skip
    shared = redis.Redis(port=redis_server.port)
    old = launch(*flags, store=tmp_path / "old")
    new = launch(*flags, store=tmp_path / "new", environment=other_version, own_interpreter=True)
    request = compile_request(graph_of(), DCE)
    with connected(old.address) as at_old, connected(new.address) as at_new:
        assert at_new.GetServerInfo(pb.GetServerInfoRequest()).lazyfx_version == "9.9.9"
        of_old = at_old.Compile(request)
        assert of_old.cache.status == MISS
        wait_until(lambda: shared.keys("*histories/*"), "the history of the graph in the store")
        of_new = at_new.Compile(request)
        assert of_new.cache.status == MISS
        assert of_new.cache.miss_reason == pb.MISS_REASON_NEW_ENVIRONMENT
        assert of_new.module_key != of_old.module_key
        for stub, mine, foreign in (
            (at_old, of_old.module_key, of_new.module_key),
            (at_new, of_new.module_key, of_old.module_key),
        ):
            assert artifact(stub, mine, pb.ARTIFACT_KIND_CODE).data
            wanted = pb.GetArtifactRequest(module_key=foreign, kind=pb.ARTIFACT_KIND_CODE)
            told = refused(lambda: list(stub.GetArtifact(wanted)))  # noqa: B023
            assert told.code == "NOT_FOUND"
            again = stub.Compile(request)
            assert (again.cache.status, again.module_key) == (HIT, mine)


def test_an_upgrade_and_a_rollback_in_one_folder(
    launch: Callable[..., RunningServer], other_version: dict[str, str], tmp_path: Path
) -> None:
    request, folder = compile_request(graph_of(), DCE), tmp_path / "store"
    found = []
    for variables in ({}, other_version, {}):
        server = launch(
            "--workers", "1", store=folder, environment=variables, own_interpreter=bool(variables)
        )
        with connected(server.address) as stub:
            answer = stub.Compile(request)
            assert artifact(stub, answer.module_key, pb.ARTIFACT_KIND_CODE).data
        found.append((answer.cache.status, answer.module_key))
        assert server.stop() == 0
    assert [status for status, _ in found] == [MISS, MISS, HIT]
    assert found[0][1] == found[2][1] != found[1][1]

"""Several servers on one store: Redis for small entries, a bucket for large ones."""

from __future__ import annotations

import operator
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import store_servers
import torch
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
from servers import RunningServer
from torch import nn

import lazyfx
from lazyfx.v1 import compiler_pb2 as pb

FOLD = lazyfx.pass_spec("constant_fold", max_bytes=8 << 20)


def foldable() -> torch.fx.GraphModule:
    """A graph with a constant of 2 MB, once it is folded."""
    torch.manual_seed(0)
    graph = torch.fx.Graph()
    x, weight = graph.placeholder("x"), graph.get_attr("weight")
    doubled = graph.call_function(operator.add, (weight, weight))
    graph.output(graph.call_function(operator.matmul, (x, doubled)))
    root = nn.Module()
    root.register_buffer("weight", torch.randn(700, 700))
    return torch.fx.GraphModule(root, graph)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[store_servers.Server]:
    server = store_servers.redis("--requirepass", "hunter2")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def replica(
    redis_server: store_servers.Server,
    tmp_path_factory: pytest.TempPathFactory,
    launch_for_file: Callable[..., RunningServer],
) -> Callable[..., RunningServer]:
    """Starts a server on the shared store, with the shared secrets unless it is a stranger."""
    keys = tmp_path_factory.mktemp("keys")
    s3 = store_servers.running("moto")

    def start(*flags: str, stranger: bool = False) -> RunningServer:
        files = tmp_path_factory.mktemp("stranger") if stranger else keys
        return launch_for_file(
            "--workers", "1",
            "--blobs", "s3://shared/fleet",
            "--store-wait-seconds", "10",
            "--tenant-secret", str(files / "tenants.key"),
            "--signing-key", str(files / "signing.pem"),
            *flags,
            environment={
                **store_servers.s3_variables(s3),
                "LAZYFX_STORE": f"redis://:hunter2@127.0.0.1:{redis_server.port}/0",
            },
        )  # fmt: skip

    yield start
    store_servers.stop_all()


@pytest.fixture(scope="module")
def pair(replica: Callable[..., RunningServer]) -> tuple[RunningServer, RunningServer]:
    return replica(), replica()


def written(server: store_servers.Server, pattern: str) -> int:
    client = redis.Redis(port=server.port, password="hunter2")
    return len(client.keys(f"lazyfx:1:{pattern}"))


def test_second_server_serves_what_the_first_has_compiled(pair, redis_server):
    first, second = pair
    with connected(first.address) as one, connected(second.address) as other:
        before = written(redis_server, "modules/*"), written(redis_server, "artifacts/*")
        made = one.Compile(compile_request(graph_of(), CSE, DCE))
        assert made.cache.status == pb.CACHE_STATUS_MISS
        code = artifact(one, made.module_key, pb.ARTIFACT_KIND_CODE)
        assert code.header.rendered
        wait_until(lambda: written(redis_server, "modules/*") > before[0], "a stored module")
        wait_until(lambda: written(redis_server, "artifacts/*") > before[1], "a stored artifact")
        found = other.Compile(compile_request(graph_of(), CSE, DCE))
        assert found.cache.status == pb.CACHE_STATUS_HIT
        assert found.module_key == made.module_key
        again = artifact(other, found.module_key, pb.ARTIFACT_KIND_CODE)
        assert again.data == code.data
        assert not again.header.rendered
    for server in pair:
        assert total(metrics(server.metrics_url), "lazyfx_store_in_use", tier="redis") == 1
        assert total(metrics(server.metrics_url), "lazyfx_store_in_use", tier="s3") == 1
        assert not [line for line in server.log if "hunter2" in line]


def test_large_constants_come_from_the_bucket(pair, redis_server):
    first, second = pair
    model, x = foldable(), torch.randn(2, 700)
    notes = written(redis_server, "large/*")
    with lazyfx.connect(first.address) as client:
        compiled = client.compile(model, passes=[FOLD])
        assert compiled.cache.status == "miss"
        wait_until(lambda: written(redis_server, "large/*") > notes, "a noted large entry")
        wait_until(lambda: not pending(first), "nothing to write")
    with lazyfx.connect(second.address) as client:
        shared = client.compile(model, passes=[FOLD])
        assert shared.cache.status == "hit"
        torch.testing.assert_close(shared.graph_module()(x), model(x))


def pending(server: RunningServer) -> bool:
    return total(metrics(server.metrics_url), "lazyfx_in_flight") > 0


def test_server_with_secrets_of_its_own_is_refused(pair, replica):
    with pytest.raises(RuntimeError, match=r"another tenant secret.*--tenant-secret"):
        replica(stranger=True)


def test_redis_is_killed_and_comes_back(replica, redis_server):
    server = replica("--store-wait-seconds", "0.5")
    with connected(server.address) as stub:
        for number in range(30):
            if number == 10:
                redis_server.kill()
            if number == 20:
                redis_server.start()
            answer = stub.Compile(compile_request(graph_of(100.0 + number), CSE))
            assert artifact(stub, answer.module_key, pb.ARTIFACT_KIND_CODE).data
            assert (
                stub.Compile(compile_request(graph_of(100.0 + number), CSE)).cache.status
                == pb.CACHE_STATUS_HIT
            )
        wait_until(
            lambda: total(metrics(server.metrics_url), "lazyfx_store_in_use", tier="redis") == 1,
            "the store being used again",
        )
        redis_server.signal(signal.SIGSTOP)
        try:
            for number in range(10):
                stub.Compile(compile_request(graph_of(200.0 + number), CSE))
            found = metrics(server.metrics_url)
            assert total(found, "lazyfx_store_in_use", tier="redis") == 0
            assert total(found, "lazyfx_store_skipped_total", tier="redis") > 0
        finally:
            redis_server.signal(signal.SIGCONT)
    assert server.stop() == 0
    assert not [line for line in server.log if "ERROR" in line or "Traceback" in line]


def test_store_that_is_away_does_not_keep_a_server_from_starting(launch, tmp_path: Path):
    url = f"redis://user:hunter2@127.0.0.1:{store_servers.free_port()}/0"
    server = launch("--workers", "1", store=tmp_path, environment={"LAZYFX_STORE": url})
    with connected(server.address) as stub:
        assert stub.Compile(compile_request(graph_of(), CSE)).module_key
    assert any("redis is not used for now" in line for line in server.log)
    assert not [line for line in server.log if "hunter2" in line]
    shutil.rmtree(tmp_path, ignore_errors=True)

"""Several servers that share a Redis make each result once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
import redis
import store_servers
from harness import (
    CSE,
    DCE,
    PATIENCE,
    artifact,
    compile_request,
    connected,
    graph_of,
    metrics,
    paused_workers,
    refused,
    total,
    wait_until,
)
from servers import RunningServer

from lazyfx.calls.uploading import CHUNK_BYTES, upload
from lazyfx.capture.blob import Blob
from lazyfx.errors import InvalidRequestError
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub

HIT, MISS, JOINED = pb.CACHE_STATUS_HIT, pb.CACHE_STATUS_MISS, pb.CACHE_STATUS_JOINED
Start = Callable[..., RunningServer]


@dataclass
class Fleet:
    """Servers on one Redis."""

    servers: Sequence[RunningServer]
    store: store_servers.Server

    def sum(self, name: str, **labels: str) -> float:
        return sum(total(metrics(each.metrics_url), name, **labels) for each in self.servers)

    @property
    def compiles(self) -> float:
        return self.sum("lazyfx_compile_seconds_count")

    def flights(self, outcome: str, stage: str = "compile") -> float:
        return self.sum("lazyfx_fleet_flights_total", stage=stage, outcome=outcome)

    @property
    def leases(self) -> int:
        """Leases that are held at present."""
        return len(redis.Redis(port=self.store.port).keys("lazyfx:1:lease:*"))


@pytest.fixture(scope="module")
def redis_server() -> Iterator[store_servers.Server]:
    server = store_servers.redis()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def replica(
    redis_server: store_servers.Server,
    tmp_path_factory: pytest.TempPathFactory,
    launch_for_file: Start,
) -> Start:
    """Starts a server of the fleet, with a folder of its own."""
    keys = tmp_path_factory.mktemp("keys")

    def start(*flags: str) -> RunningServer:
        return launch_for_file(
            "--workers", "1",
            "--store", f"redis://127.0.0.1:{redis_server.port}/0",
            "--store-wait-seconds", "1",
            "--tenant-secret", str(keys / "tenants.key"),
            "--signing-key", str(keys / "signing.pem"),
            *flags,
        )  # fmt: skip

    return start


@pytest.fixture(scope="module")
def patient(replica: Start, redis_server: store_servers.Server) -> Fleet:
    """Three servers that wait for each other for longer than the test lasts."""
    flags = ("--store-lease-seconds", "60", "--store-hedge-seconds", "600")
    return Fleet([replica(*flags) for _ in range(3)], redis_server)


@pytest.fixture(scope="module")
def hasty(replica: Start, redis_server: store_servers.Server) -> Fleet:
    """Two servers that soon lose patience."""
    flags = ("--store-lease-seconds", "1", "--store-hedge-seconds", "2")
    return Fleet([replica(*flags) for _ in range(2)], redis_server)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def all_at_once(
    servers: Sequence[RunningServer], clients: int, call: Callable[[Any], object]
) -> list[Any]:
    """What as many clients get, each on a connection of its own, spread over the servers."""
    start = threading.Barrier(clients)

    def one(number: int) -> object:
        with connected(servers[number % len(servers)].address) as stub:
            start.wait()
            return call(stub)

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, range(clients)))


def compile_of(number: float) -> Callable[[Any], pb.CompileResponse]:
    request = compile_request(graph_of(number), CSE, DCE)
    return lambda stub: stub.Compile(request, timeout=PATIENCE)


@contextlib.contextmanager
def calling(server: RunningServer, number: float) -> Iterator[grpc.Future]:
    """A compile that is under way."""
    with connected(server.address) as stub:
        yield stub.Compile.future(compile_request(graph_of(number), CSE, DCE), timeout=PATIENCE)


def resume(workers: Sequence[int]) -> None:
    for pid in workers:
        os.kill(pid, signal.SIGCONT)


def waits_for_another(server: RunningServer) -> bool:
    """Whether a server has a flight; its own workers are idle, so it waits."""
    return total(metrics(server.metrics_url), "lazyfx_in_flight") > 0


def test_crowd_of_clients_over_three_servers_costs_one_compile(patient):
    def call(stub):
        response = compile_of(1.0)(stub)
        return response, artifact(stub, response.module_key, pb.ARTIFACT_KIND_CODE).data

    compiles, led = patient.compiles, patient.flights("led")
    rendered = patient.sum("lazyfx_artifacts_total", source="rendered")
    answers = all_at_once(patient.servers, 60, call)
    assert len({(response.module_key, code) for response, code in answers}) == 1
    assert patient.compiles == compiles + 1
    assert patient.flights("led") == led + 1
    assert patient.sum("lazyfx_artifacts_total", source="rendered") == rendered + 1
    assert [response.cache.status for response, _ in answers].count(MISS) == 1
    wait_until(lambda: patient.leases == 0, "all leases ended")


def test_waiter_that_leaves_does_not_end_the_flight(patient):
    one, two, _ = patient.servers
    with paused_workers(one.pid) as pids, calling(one, 2.0) as first:
        wait_until(lambda: patient.leases, "a lease")
        with calling(two, 2.0) as second, calling(two, 2.0) as third:
            wait_until(lambda: waits_for_another(two), "a flight that waits")
            second.cancel()
            with connected(two.address) as stub, pytest.raises(grpc.RpcError) as caught:
                stub.Compile(compile_request(graph_of(2.0), CSE, DCE), timeout=0.3)
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            third.cancel()
        wait_until(lambda: not waits_for_another(two), "its end on the second server")
        assert patient.leases == 1
        with calling(two, 2.0) as late:
            wait_until(lambda: waits_for_another(two), "a flight that waits")
            assert not first.done()
            resume(pids)
            assert first.result().cache.status == MISS
            assert late.result().cache.status == JOINED


def test_lease_ends_at_once_when_the_last_waiter_leaves(patient):
    one, two, _ = patient.servers
    taken_over = patient.flights("taken_over")
    with paused_workers(one.pid), calling(one, 3.0) as first:
        wait_until(lambda: patient.leases, "a lease")
        with calling(two, 3.0) as second:
            wait_until(lambda: waits_for_another(two), "a flight that waits")
            first.cancel()
            # The lease of 60 seconds would have lasted longer than this call may.
            assert second.result().cache.status == MISS
    assert patient.flights("taken_over") == taken_over + 1


def test_holder_that_fails_leaves_it_to_another(patient):
    one, two, _ = patient.servers
    with paused_workers(one.pid) as pids, calling(one, 4.0) as first:
        wait_until(lambda: patient.leases, "a lease")
        with calling(two, 4.0) as second:
            wait_until(lambda: waits_for_another(two), "a flight that waits")
            for _ in range(2):  # a job is tried twice
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            assert second.result().module_key
            assert first.result().module_key == second.result().module_key


def test_slow_flight_is_hedged_and_the_first_result_serves_all(hasty):
    one, two = hasty.servers
    hedged, outrun = hasty.flights("hedged"), hasty.flights("outrun")
    with paused_workers(one.pid), calling(one, 5.0) as first:
        wait_until(lambda: hasty.leases, "a lease")
        with calling(two, 5.0) as second:
            assert second.result().cache.status == MISS
        assert hasty.flights("hedged") == hedged + 1
        # The workers of the first server still do nothing.
        assert first.result().cache.status == JOINED
        assert first.result().module_key == second.result().module_key
    assert hasty.flights("outrun") == outrun + 1


def test_frozen_holder_is_replaced_and_answers_when_it_is_back(hasty):
    one, two = hasty.servers
    taken_over = total(metrics(two.metrics_url), "lazyfx_fleet_flights_total", outcome="taken_over")
    with paused_workers(one.pid), calling(one, 6.0) as first:
        wait_until(lambda: hasty.leases, "a lease")
        os.kill(one.pid, signal.SIGSTOP)
        try:
            with calling(two, 6.0) as second:
                assert second.result().cache.status == MISS
        finally:
            os.kill(one.pid, signal.SIGCONT)
        assert first.result().module_key == second.result().module_key
    found = metrics(two.metrics_url)
    assert total(found, "lazyfx_fleet_flights_total", outcome="taken_over") == taken_over + 1


def test_killed_holder_is_replaced(hasty, replica):
    holder = replica("--store-lease-seconds", "2.5", "--store-hedge-seconds", "600")
    two = hasty.servers[1]
    with paused_workers(holder.pid), calling(holder, 7.0) as first:
        wait_until(lambda: hasty.leases, "a lease")
        with calling(two, 7.0) as second:
            wait_until(lambda: waits_for_another(two), "a flight that waits")
            holder.process.kill()
            assert second.result().cache.status == MISS
        with pytest.raises(grpc.RpcError):
            first.result()


def test_token_of_one_server_is_known_to_all(patient):
    one, two, three = patient.servers
    with connected(one.address) as stub:
        compile_of(8.0)(stub)
        whole = compile_request(graph_of(8.0), CSE, DCE, inline=False)
        hit = stub.Compile(whole)
        assert hit.cache.status == HIT
        short = pb.CompileRequest(request_token=hit.request_token)
        assert stub.Compile(short).module_key == hit.module_key
    for server in (two, three):
        with connected(server.address) as stub:
            wait_until(lambda s=stub: answers_hit(s, short), "the token on another server")
            assert stub.Compile(short).module_key == hit.module_key
            # What it stands for is known there as well.
            assert stub.Compile(whole).request_token == hit.request_token


def answers_hit(stub: Any, request: pb.CompileRequest) -> bool:
    try:
        return stub.Compile(request).cache.status == HIT
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
            return False
        raise


def test_who_can_write_to_redis_cannot_give_tokens(patient):
    """A token is the digest of its request, and an entry is authenticated."""
    one, two, _ = patient.servers
    with connected(one.address) as stub:
        compile_of(9.0)(stub)
        token = stub.Compile(compile_request(graph_of(9.0), CSE, DCE, inline=False)).request_token
    client = redis.Redis(port=patient.store.port)
    wait_until(lambda: len(client.keys("lazyfx:1:requests/*")) > 1, "stored requests")
    names = client.keys("lazyfx:1:requests/*")
    values = [client.get(name) for name in names]
    for name, value in zip(names, values[1:] + values[:1], strict=True):
        client.set(name, value)
    with connected(two.address) as stub:
        told = refused(lambda: stub.Compile(pb.CompileRequest(request_token=token)))
        assert told.missing == (f"requests/{token.hex()}",)


def test_upload_that_goes_on_at_another_server_begins_again(patient):
    """Every call goes to the next server, as behind a load balancer."""
    one, two, three = patient.servers
    data = os.urandom(3_000_000)
    digest = graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
    ask = pb.FindMissingBlobsRequest(digests=[digest])

    def chunks(*, until: int) -> Iterator[pb.UploadBlobsRequest]:
        for offset in range(0, until, 500_000):
            part = data[offset : offset + 500_000]
            yield pb.UploadBlobsRequest(digest=digest, offset=offset, data=part)

    with connected(one.address) as stub:
        refused(lambda: stub.UploadBlobs(chunks(until=1_500_000)))
        assert list(stub.FindMissingBlobs(ask).received) == [1_500_000]
    with connected(two.address) as stub:
        assert list(stub.FindMissingBlobs(ask).received) == [0]
        assert stub.UploadBlobs(chunks(until=len(data))).stored == 1
    # At once: it was told to be stored when all servers could find it.
    for server in (three, one):
        with connected(server.address) as stub:
            assert not stub.FindMissingBlobs(ask).missing


def test_client_begins_again_where_an_upload_was_not_begun(patient):
    """It is told by one server how much there is, and sends the rest to another one."""
    data = os.urandom(3_000_000)
    digest = graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
    sent: list[list[int]] = []
    with connected(patient.servers[0].address) as one, connected(patient.servers[1].address) as two:

        def find(digests):
            return one.FindMissingBlobs(pb.FindMissingBlobsRequest(digests=digests))
            yield

        def send(chunks):
            parts = [pb.UploadBlobsRequest.FromString(chunk) for chunk in chunks]
            sent.append([part.offset for part in parts])
            try:
                return two.UploadBlobs(iter(parts))
            except grpc.RpcError as error:
                raise InvalidRequestError(error.details(), code=error.code().name) from error
            yield

        part = pb.UploadBlobsRequest(digest=digest, data=data[: CHUNK_BYTES * 3])
        refused(lambda: one.UploadBlobs(iter([part])))
        blob = Blob(digest, lambda: memoryview(data))
        assert [*upload([blob], find, send, on_refused=pytest.fail)] == []
        ask = pb.FindMissingBlobsRequest(digests=[digest])
        assert not one.FindMissingBlobs(ask).missing
    assert [offsets[0] for offsets in sent] == [CHUNK_BYTES * 3, 0]


async def many_compiles(servers: Sequence[RunningServer], clients: int, number: float) -> list[Any]:
    """What as many clients get, each on a connection of its own that is there before the call."""
    request = compile_request(graph_of(number), CSE, DCE)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(servers[n % len(servers)].address, options)
            )
            for n in range(clients)
        ]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        calls = [GraphCompilerStub(each).Compile(request, timeout=PATIENCE) for each in channels]
        return list(await asyncio.gather(*calls))


@pytest.mark.long
def test_two_hundred_clients_over_three_servers_cost_one_compile(patient):
    compiles = patient.compiles
    answers = asyncio.run(many_compiles(patient.servers, 200, 10.0))
    assert len({answer.module_key for answer in answers}) == 1
    assert patient.compiles == compiles + 1


@pytest.mark.long
def test_thousand_connections_to_one_server_cost_one_compile(launch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    server = launch("--workers", "1")
    answers = asyncio.run(many_compiles([server], 1000, 11.0))
    assert len({answer.module_key for answer in answers}) == 1
    found = metrics(server.metrics_url)
    assert total(found, "lazyfx_compile_seconds_count") == 1
    assert total(found, "lazyfx_requests_total", method="Compile", code="OK") == 1000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_redis_that_fails_halfway_costs_one_compile_a_server(patient, number, threads):
    graph = 100.0 + number
    compiles, unleased = patient.compiles, patient.flights("unleased")
    one = patient.servers[0]
    with paused_workers(one.pid) as pids, calling(one, graph) as first:
        wait_until(lambda: patient.leases, "a lease")
        crowd = threads.submit(all_at_once, patient.servers, 30, compile_of(graph))
        wait_until(lambda: all(map(waits_for_another, patient.servers)), "flights everywhere")
        patient.store.signal(number)
        wait_until(lambda: patient.flights("unleased") == unleased + 2, "flights without leases")
        resume(pids)
        keys = {answer.module_key for answer in crowd.result()}
        assert keys == {first.result().module_key}
    assert patient.compiles == compiles + 3
    if number == signal.SIGKILL:
        patient.store.kill()
        patient.store.start()
    else:
        patient.store.signal(signal.SIGCONT)
    wait_until(
        lambda: patient.sum("lazyfx_store_in_use", tier="redis") == 3, "the store being used"
    )

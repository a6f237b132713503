"""Tenants cannot find, detect or evict each other's entries."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from hostile.test_identity import new_token
from server.harness import compile_request, graph_of, refusal_of, refused

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub
from lazyfx_server.compiling.catalog import Catalog, NotFound
from lazyfx_server.compiling.key import environment_digest
from lazyfx_server.compiling.limits.admission import Admission, QueuedJob
from lazyfx_server.compiling.limits.cost_estimates import JobKind
from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.tenants import Seal, Tenants
from lazyfx_server.errors import OverloadedError
from lazyfx_server.settings.limits import CallLimits, QuotaLimits
from lazyfx_server.store import MemoryStore
from lazyfx_server.v1.worker_pb2 import CompileResult, ModuleRecord

if TYPE_CHECKING:
    from servers import RunningServer

DCE = "dead_code_elimination"


class Caller:
    """A raw stub that sends a token."""

    def __init__(self, server: RunningServer, token: str) -> None:
        self.channel = grpc.insecure_channel(server.address)
        self._stub = GraphCompilerStub(self.channel)
        self._shown = [("authorization", f"Bearer {token}")]

    def __getattr__(self, method: str) -> Callable[[object], object]:
        call = getattr(self._stub, method)
        return lambda request: call(request, metadata=self._shown, timeout=60)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    return path, new_token(path, "alice"), new_token(path, "bob")


@pytest.fixture(scope="module")
def server(
    launch_for_file: Callable[..., RunningServer], tokens: tuple[Path, str, str]
) -> RunningServer:
    return launch_for_file("--tokens", str(tokens[0]))


@pytest.fixture(scope="module")
def alice(server: RunningServer, tokens: tuple[Path, str, str]) -> Caller:
    return Caller(server, tokens[1])


@pytest.fixture(scope="module")
def bob(server: RunningServer, tokens: tuple[Path, str, str]) -> Caller:
    return Caller(server, tokens[2])


def _upload(caller: Caller, data: bytes) -> graph_pb2.Digest:
    digest = graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
    caller.UploadBlobs(iter([pb.UploadBlobsRequest(digest=digest, data=data)]))
    return digest


@pytest.mark.parametrize("kind", [k for k in pb.ArtifactKind.values() if k])
def test_another_tenant_s_module_is_not_there(alice: Caller, bob: Caller, kind: int) -> None:
    made = alice.Compile(compile_request(graph_of(1.5), DCE))
    for key in (made.module_key, bytes(32)):  # alice's, and one that no tenant has
        with pytest.raises(grpc.RpcError) as caught:
            list(bob.GetArtifact(pb.GetArtifactRequest(module_key=key, kind=kind)))
        refusal = refusal_of(caught.value)
        assert (refusal.code, refusal.message) == (
            "NOT_FOUND",
            "no compiled module has this key, or it was evicted; compile again",
        )


def test_another_tenant_s_graph_is_unknown_and_compiling_it_is_a_miss(
    alice: Caller, bob: Caller
) -> None:
    request = compile_request(graph_of(2.5), DCE)
    made = alice.Compile(request)
    assert alice.Compile(request).cache.status == pb.CACHE_STATUS_HIT
    refusal = refused(lambda: bob.Compile(compile_request(graph_of(2.5), DCE, inline=False)))
    assert refusal.missing == (f"blobs/{request.graph_digest.sha256.hex()}",)
    own = bob.Compile(request)
    assert own.cache.status == pb.CACHE_STATUS_MISS
    assert own.cache.miss_reason == pb.MISS_REASON_NEW_GRAPH
    assert own.module_key != made.module_key


def test_another_tenant_s_request_token_is_unknown(alice: Caller, bob: Caller) -> None:
    alice.Compile(compile_request(graph_of(2.75), DCE))
    known = alice.Compile(compile_request(graph_of(2.75), DCE, inline=False))
    token = pb.CompileRequest(request_token=known.request_token)
    assert alice.Compile(token).cache.status == pb.CACHE_STATUS_HIT
    refusal = refused(lambda: bob.Compile(token))
    nobodys = refused(lambda: bob.Compile(pb.CompileRequest(request_token=bytes(32))))
    assert refusal.missing == (f"requests/{known.request_token.hex()}",)
    assert (refusal.code, refusal.message) == (nobodys.code, nobodys.message)


def test_another_tenant_s_values_are_missing(alice: Caller, bob: Caller) -> None:
    digest = _upload(alice, b"alice's weights")
    asked = pb.FindMissingBlobsRequest(digests=[digest])
    assert not alice.FindMissingBlobs(asked).missing
    assert list(bob.FindMissingBlobs(asked).missing) == [digest]
    request = compile_request(graph_of(3.5), DCE)
    request.values.add(content=digest)
    assert refused(lambda: bob.Compile(request)).missing == (f"blobs/{digest.sha256.hex()}",)


def test_a_key_of_another_tenant_takes_the_same_steps_as_an_unknown_one() -> None:
    class Watched(MemoryStore):
        def __init__(self) -> None:
            super().__init__(2**20)
            self.steps: list[str] = []

        async def get(self, key: str) -> bytes | None:
            self.steps.append("get")
            return await super().get(key)

    async def steps() -> list[list[str]]:
        store, tenants = Watched(), Tenants(b"s" * 32)
        catalog = Catalog(store)
        key = _Key()
        await catalog.add(tenants.named("alice"), key.digest, key, CompileResult())
        taken = []
        for asked in (key.digest, bytes(32)):
            store.steps = []
            assert isinstance(await catalog.find(tenants.named("bob"), asked), NotFound)
            taken.append(store.steps)
        return taken

    foreign, unknown = asyncio.run(steps())
    assert foreign == unknown == ["get"]


class _Key:
    graph = pipeline = values = tenant = bytes(32)
    environment = environment_digest()
    digest = b"k" * 32


def test_a_record_that_was_written_into_the_store_is_not_trusted() -> None:
    async def found(tamper: Callable[[bytes], bytes]) -> object:
        store, alice = MemoryStore(2**20), Tenants(b"s" * 32).named("alice")
        key = _Key()
        module = await Catalog(store).add(alice, key.digest, key, CompileResult())
        place = alice.module(key.digest)
        stored = await store.get(place)
        assert stored is not None
        await store.put(place, tamper(stored))
        assert module.graph_blob
        return await Catalog(store).find(alice, key.digest)

    assert not isinstance(asyncio.run(found(lambda stored: stored)), NotFound)
    forged = ModuleRecord(pipeline_fingerprint=b"evil").SerializeToString()
    for evil in (forged, bytes(32) + forged, b""):
        assert asyncio.run(found(lambda stored, evil=evil: evil)) == NotFound(damaged=True)
    assert asyncio.run(found(lambda stored: stored[:32] + forged)) == NotFound(damaged=True)
    # Its tag is in every statement that the tenant's clients receive.
    for secret in (b"s" * 32, b"t" * 32):
        alice = Tenants(secret).named("alice")
        for key in (alice.tag, alice.seal.key) if secret[0] == ord("t") else (alice.tag,):
            evil = Seal(key).close(alice.module(_Key.digest), forged)
            assert asyncio.run(found(lambda stored, evil=evil: evil)) == NotFound(damaged=True)


def test_a_quota_refusal_says_when_to_retry() -> None:
    now = 0.0
    quotas = Quotas(
        QuotaLimits(quota_requests=2, quota_bytes=100, quota_compile_seconds=10), lambda: now
    )
    alice, bob = (Tenants(b"s" * 32).named(name) for name in ("alice", "bob"))
    quotas.charge_request(alice)
    quotas.charge_request(alice)
    with pytest.raises(OverloadedError, match="quota_requests") as over:
        quotas.charge_request(alice)
    assert over.value.retry_after == 30.0
    quotas.charge_request(bob)
    now = 30.0
    quotas.charge_request(alice)
    quotas.charge_bytes(alice, 1000)  # larger than the quota: once, and then nothing for long
    with pytest.raises(OverloadedError, match="quota_bytes"):
        quotas.charge_bytes(alice, 1)
    with quotas.charge_work(alice):
        now += 20.0
    with (
        pytest.raises(OverloadedError, match="quota_compile_seconds") as over,
        quotas.charge_work(alice),
    ):
        pass
    assert over.value.retry_after == 3600.0
    with quotas.charge_work(bob):
        pass


def test_a_server_holds_tenants_to_their_quotas(
    launch: Callable[..., RunningServer], tokens: tuple[Path, str, str]
) -> None:
    server = launch(
        "--tokens", str(tokens[0]), "--quota-requests", "3", "--quota-bytes", "4000",
        "--quota-compile-seconds", "0.001",
    )  # fmt: skip
    alice, bob = Caller(server, tokens[1]), Caller(server, tokens[2])
    alice.Compile(compile_request(graph_of(1.0), DCE))
    over = refused(lambda: alice.Compile(compile_request(graph_of(2.0), DCE)))
    assert "quota_compile_seconds" in over.message
    assert alice.Compile(compile_request(graph_of(1.0), DCE)).cache.status == pb.CACHE_STATUS_HIT
    for call in (
        lambda: alice.Compile(compile_request(graph_of(1.0), DCE)),
        lambda: list(alice.GetArtifact(pb.GetArtifactRequest())),
        lambda: alice.FindMissingBlobs(pb.FindMissingBlobsRequest()),
        lambda: _upload(alice, b"x"),
    ):
        over = refused(call)
        assert (over.code, "quota_requests" in over.message) == ("RESOURCE_EXHAUSTED", True)
        assert over.retry_after is not None
        assert 0 < over.retry_after <= 60
    _upload(bob, bytes(3000))
    over = refused(lambda: _upload(bob, bytes(3000)))
    assert "quota_bytes" in over.message
    assert over.retry_after is not None


def test_a_crowd_of_one_tenant_does_not_starve_another() -> None:
    async def scenario() -> list[str]:
        admission, order = Admission(1, CallLimits(max_queue=20)), []
        release = asyncio.Event()

        async def job(tenant: str) -> None:
            async with admission.slot(QueuedJob(tenant, JobKind(b"", b"", 0))):
                order.append(tenant)
                await release.wait()

        tasks = [asyncio.ensure_future(job("crowd")) for _ in range(8)]
        await asyncio.sleep(0)
        tasks += [asyncio.ensure_future(job("single")) for _ in range(2)]
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*tasks)
        assert admission.waiting == 0
        return order

    order = asyncio.run(scenario())
    assert order[:5].count("single") == 2


def test_a_full_queue_gives_way_to_a_tenant_with_less_in_it() -> None:
    async def scenario() -> tuple[list[object], int]:
        admission = Admission(1, CallLimits(max_queue=4))
        release = asyncio.Event()

        async def job(tenant: str) -> str:
            async with admission.slot(QueuedJob(tenant, JobKind(b"", b"", 0))):
                await release.wait()
                return tenant

        tasks = [asyncio.ensure_future(job("crowd")) for _ in range(5)]
        await asyncio.sleep(0)
        tasks.append(asyncio.ensure_future(job("single")))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError) as over:
            await job("crowd")
        assert over.value.retry_after is not None
        tasks[2].cancel()
        await asyncio.sleep(0)
        release.set()
        return await asyncio.gather(*tasks, return_exceptions=True), admission.waiting

    ended, waiting = asyncio.run(scenario())
    assert waiting == 0
    assert ended[:2] == ["crowd", "crowd"]
    assert isinstance(ended[2], asyncio.CancelledError)
    assert ended[3] == "crowd"
    assert isinstance(ended[4], OverloadedError)
    assert ended[5] == "single"

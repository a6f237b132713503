"""Clients with several addresses: balance, and replicas that stop, break or hang.

The replicas share their signing key and no store.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import operator
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from harness import DCE, connected, graph_of, paused_workers, wait_until
from servers import RunningServer
from torch import nn
from torch.fx import Graph, GraphModule
from typer.testing import CliRunner

import lazyfx
from lazyfx.calls import blocking_driver, channel, conversation, service_calls, watching
from lazyfx.calls.channel import _OF_REPLICAS
from lazyfx.calls.replicas import HedgeDelay
from lazyfx.calls.watching import CHECK_SECONDS, QUIET_SECONDS
from lazyfx.cli.application import app
from lazyfx.errors import (
    LazyfxError,
    UnavailableError,
    UntrustedArtifactError,
    UntrustedServerError,
)
from lazyfx.flows import Place
from lazyfx.trust.known_servers import known_keys
from lazyfx.v1 import compiler_pb2 as pb

X = torch.ones(2)
numbers = itertools.count(20_000)


@pytest.fixture(scope="module")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "signing.pem"
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def replicas(launch_for_file: Any, signing_key: Path) -> list[RunningServer]:
    """Three that all tests of this file share, and leave as they are."""
    flags = ("--workers", "1", "--signing-key", str(signing_key))
    return [launch_for_file(*flags) for _ in range(3)]


@pytest.fixture
def pair(launch: Any, signing_key: Path, tmp_path: Path) -> list[RunningServer]:
    """Two of which a test may end one."""
    flags = ("--workers", "1", "--signing-key", str(signing_key))
    return [launch(*flags, store=tmp_path / name) for name in ("a", "b")]


def joined(servers: Sequence[RunningServer]) -> str:
    return ",".join(server.address for server in servers)


def compiles(servers: Sequence[RunningServer]) -> list[int]:
    """How many compiles each has done."""
    found = []
    for server in servers:
        with connected(server.address) as stub:
            found.append(stub.GetStats(pb.GetStatsRequest(), timeout=60).misses)
    return found


def difference(after: Sequence[int], before: Sequence[int]) -> list[int]:
    return [b - a for a, b in zip(before, after, strict=True)]


def test_compiles_go_to_the_replicas_in_turn(replicas: list[RunningServer]) -> None:
    before = compiles(replicas)
    with lazyfx.connect(joined(replicas)) as client:
        assert client.address == joined(replicas)
        assert client.is_ready(60)
        remotes = [client.compile(graph_of(i), [DCE]) for i in range(6)]
        # Artifacts are fetched where they are: nothing is compiled again.
        for i, remote in enumerate(remotes):
            assert torch.equal(remote(X), X * 2 * i)
    assert difference(compiles(replicas), before) == [2, 2, 2]


def test_ring_hash_sends_one_graph_to_one_replica_from_all_clients(
    replicas: list[RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = compiles(replicas)
    with lazyfx.connect(joined(replicas), balance="ring_hash") as client:
        first = [client.compile(graph_of(i + 100), [DCE]) for i in range(12)]
    assert {remote.cache.status for remote in first} == {"miss"}
    monkeypatch.setenv("LAZYFX_BALANCE", "ring_hash")
    with lazyfx.connect(joined(replicas[::-1])) as client:
        second = [client.compile(graph_of(i + 100), [DCE]) for i in range(12)]
    assert {remote.cache.status for remote in second} == {"hit"}
    spread = difference(compiles(replicas), before)
    assert sum(spread) == 12
    assert max(spread) < 12


class Folding(nn.Module):
    """A large table whose values a pass reads, so that they are uploaded."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.full((200_000,), float(number)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.sin(self.table).sum()


def test_what_was_uploaded_is_where_it_is_compiled(replicas: list[RunningServer]) -> None:
    before = compiles(replicas)
    uploads: list[int] = []
    with lazyfx.connect(
        joined(replicas), on_upload=lambda sent, total: uploads.append(sent == total)
    ) as client:
        for number in range(3):
            model = Folding(number)
            remote = client.compile(torch.export.export(model, (X,)), ["constant_fold"])
            assert torch.allclose(remote(X), model(X))
    assert sum(uploads) == 3  # each once
    # The first one also counts the try without the values.
    assert min(difference(compiles(replicas), before)) >= 1


def test_a_batch_goes_on_when_its_replica_ends(pair: list[RunningServer]) -> None:
    with lazyfx.connect(joined(pair)) as client:
        results = client.compile_many([(graph_of(i), [DCE]) for i in range(20)])
        done = [next(results)]
        for server, count in zip(pair, compiles(pair), strict=True):
            if count:
                os.kill(server.pid, signal.SIGKILL)
        done += results
    assert sorted(i for i, _ in done) == list(range(20))
    assert not [result for _, result in done if isinstance(result, LazyfxError)]


def untraced(number: int) -> GraphModule:
    """A graph that is not traced: while one thread traces, calls of modules fail in all others."""
    graph = Graph()
    product = graph.call_function(operator.mul, (graph.placeholder("x"), number))
    graph.output(graph.call_function(operator.add, (product, product)))
    return GraphModule(nn.Module(), graph)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_replica_that_ends_costs_no_error(
    pair: list[RunningServer], number: signal.Signals
) -> None:
    wrong: list[object] = []
    done = [0, 0]
    has_ended = threading.Event()

    def work(thread: int, client: lazyfx.Client) -> None:
        left = 8  # compiles after the end
        try:
            while left:
                value = thread * 1000 + done[thread]
                left -= has_ended.is_set()
                remote = client.compile(untraced(value), [DCE])
                if not torch.equal(remote(X), X * 2 * value):
                    wrong.append(value)
                done[thread] += 1
        except BaseException as error:  # noqa: BLE001 - the test shows it
            wrong.append(error)

    with lazyfx.connect(joined(pair)) as client:
        untouched = [client.compile(graph_of(i + 10_000), [DCE]) for i in range(4)]
        threads = [threading.Thread(target=work, args=(i, client)) for i in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: wrong or min(done) >= 5, "load")
        os.kill(pair[0].pid, number)
        pair[0].process.wait(60)
        has_ended.set()
        for thread in threads:
            thread.join(120)
        # Handles of the lost replica compile again.
        for i, remote in enumerate(untouched):
            assert torch.equal(remote(X), X * 2 * (i + 10_000))
    assert not wrong


@contextlib.contextmanager
def frozen(server: RunningServer) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.fixture
def no_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC itself notices no silent server within the timeout of a call."""
    later = tuple((k, 600_000 if k == "grpc.keepalive_time_ms" else v) for k, v in _OF_REPLICAS)
    monkeypatch.setattr(channel, "_OF_REPLICAS", later)


@pytest.mark.usefixtures("no_pings")
def test_a_frozen_replica_costs_a_miss_no_more_than_a_health_check(
    replicas: list[RunningServer],
) -> None:
    pair = replicas[:2]
    with lazyfx.connect(joined(pair), timeout=60) as client:
        known = [client.compile(graph_of(i + 600), [DCE]) for i in range(4)]
        with frozen(pair[0]):
            for i in range(4):
                assert client.compile(graph_of(i + 610), [DCE]).cache.status == "miss"
            for i, remote in enumerate(known):
                assert torch.equal(remote(X), X * 2 * (i + 600))
        before = compiles(pair)
        before = compiles(pair)

        def used_again() -> bool:
            client.compile(graph_of(next(numbers)), [DCE])
            return compiles(pair)[0] > before[0]

        wait_until(used_again, "the replica that answers again has its turn")


@pytest.mark.long
@pytest.mark.usefixtures("no_pings")
async def test_the_asynchronous_client_leaves_a_frozen_replica_too(
    replicas: list[RunningServer],
) -> None:
    pair = replicas[:2]
    async with lazyfx.connect_async(joined(pair), timeout=60) as client:
        await asyncio.gather(*(client.compile(graph_of(i + 620), [DCE]) for i in range(4)))
        with frozen(pair[0]):
            asked = (client.compile(graph_of(i + 630), [DCE]) for i in range(6))
            found = await asyncio.gather(*asked)
            assert [remote.cache.status for remote in found] == ["miss"] * 6


@pytest.mark.long
async def test_a_server_that_takes_no_more_calls_of_a_client_is_not_taken_for_frozen(
    launch: Any, replicas: list[RunningServer], signing_key: Path, tmp_path: Path
) -> None:
    # Two: the watch over its health, and a call.
    flags = ("--workers", "1", "--signing-key", str(signing_key), "--max-streams", "2")
    busy = launch(*flags, store=tmp_path)
    addresses = f"{busy.address},{replicas[2].address}"
    async with lazyfx.connect_async(addresses, timeout=60, balance="in_order") as client:
        await client.compile(graph_of(next(numbers)), [DCE])
        before = compiles([busy])
        with paused_workers(busy.pid):
            asked = asyncio.ensure_future(client.compile(graph_of(next(numbers)), [DCE]))
            # Longer than the checks take, each of which waits for the end of this call.
            await asyncio.wait({asked}, timeout=QUIET_SECONDS + CHECK_SECONDS + 2)
        await asked
    assert difference(compiles([busy]), before) == [1]


def test_a_frozen_replica_costs_a_hit_the_time_of_the_hedge(
    replicas: list[RunningServer],
) -> None:
    graph, pair = graph_of(7), replicas[:2]
    with lazyfx.connect(joined(pair), hedge_after=0.05, timeout=20) as client:
        for _ in range(4):
            client.compile(graph, [DCE])
        with frozen(pair[0]):
            found = [client.compile(graph, [DCE]).cache.status for _ in range(6)]
    assert found == ["hit"] * 6


@pytest.mark.usefixtures("no_pings")
def test_a_frozen_replica_costs_a_large_miss_the_time_of_the_hedge_and_a_moment(
    replicas: list[RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "QUIET_SECONDS", 600.0)
    monkeypatch.setattr(conversation, "INLINE_BYTES", 0)  # as with a large graph
    pair = replicas[:2]
    with lazyfx.connect(joined(pair), hedge_after=0.05, timeout=60) as client:
        for i in range(4):
            client.compile(graph_of(i + 640), [DCE])
        with frozen(pair[0]):
            for i in range(2):
                assert client.compile(graph_of(i + 650), [DCE]).cache.status == "miss"


@pytest.mark.long
@pytest.mark.usefixtures("no_pings")
def test_two_frozen_replicas_of_a_hedge_are_left_for_a_third(
    replicas: list[RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_calls, "_RACE_SECONDS", 0.2)
    monkeypatch.setattr(watching, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(blocking_driver, "CHECK_SECONDS", 0.4)
    graph = graph_of(9)
    with lazyfx.connect(
        joined(replicas), hedge_after=0.05, timeout=60, balance="in_order"
    ) as client:
        client.compile(graph, [DCE])
        with frozen(replicas[0]), frozen(replicas[1]):
            assert client.compile(graph, [DCE]).cache.status == "miss"


def test_the_delay_of_a_hedge_follows_the_answers() -> None:
    fixed, auto = HedgeDelay(0.3), HedgeDelay("auto")
    first = auto.seconds
    for i in range(400):
        for delay in (fixed, auto):
            delay.record(0.2 if i % 10 == 0 else 0.01)
    assert fixed.seconds == 0.3
    assert auto.seconds == 0.2 != first
    for _ in range(400):
        auto.record(0.004)
    assert auto.seconds == 0.004
    for _ in range(400):
        auto.record(60)
    assert auto.seconds == 1


async def test_the_asynchronous_client_hedges_too(replicas: list[RunningServer]) -> None:
    graph, pair = graph_of(8), replicas[:2]
    async with lazyfx.connect_async(joined(pair), hedge_after="auto", timeout=20) as client:
        assert await client.is_ready(60)
        for _ in range(4):
            await client.compile(graph, [DCE])
        with frozen(pair[0]):
            found = await asyncio.gather(*(client.compile(graph, [DCE]) for _ in range(6)))
        assert [remote.cache.status for remote in found] == ["hit"] * 6


def unused_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("balance", ["round_robin", "ring_hash"])
def test_a_name_for_several_servers(replicas: list[RunningServer], balance: str) -> None:
    port = replicas[0].address.rpartition(":")[2]
    with lazyfx.connect(f"dns:///localhost:{port}", balance=balance) as client:
        assert torch.equal(client.compile(graph_of(500), [DCE])(X), X * 1000)


def test_an_absent_replica_costs_no_error(replicas: list[RunningServer]) -> None:
    with lazyfx.connect(f"{unused_address()},{replicas[0].address}") as client:
        assert client.is_ready(60)
        for i in range(4):
            client.compile(graph_of(i + 200), [DCE])


def test_one_sentence_says_why_each_of_them_cannot_be_reached() -> None:
    addresses = [unused_address(), unused_address()]
    with (
        lazyfx.connect(",".join(addresses), timeout=20) as client,
        pytest.raises(UnavailableError) as failed,
    ):
        client.passes()
    message = str(failed.value)
    assert "none of 2 servers answered" in message
    for address in addresses:
        assert f"no server answers at {address}" in message


def test_a_list_is_trusted_as_little_as_the_least_of_it(
    replicas: list[RunningServer], named_host: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("LAZYFX_KNOWN_SERVERS", str(tmp_path / "known"))
    port = replicas[1].address.rpartition(":")[2]
    mixed = f"{replicas[0].address},{named_host}:{port}"
    with pytest.raises(LazyfxError, match=f"sent to {named_host}:{port} in plaintext"):
        lazyfx.connect(mixed, token="secret")
    with lazyfx.connect(mixed) as client:
        remote = client.compile(graph_of(300), [DCE])
        with pytest.raises(UntrustedServerError, match=f"lazyfx trust {named_host}:{port}`"):
            _ = remote.code


def test_replicas_with_other_signing_keys_are_told_apart(
    replicas: list[RunningServer], launch: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("LAZYFX_KNOWN_SERVERS", str(tmp_path / "known"))
    stranger = launch("--workers", "1")
    both = f"{replicas[0].address},{stranger.address}"
    with lazyfx.connect(both) as client:
        one, other = (client.compile(graph_of(400 + i), [DCE]) for i in range(2))
        assert one.code
        with pytest.raises(UntrustedArtifactError, match="replicas must share their signing keys"):
            _ = other.code
    refused = CliRunner().invoke(app, ["trust", "--yes", both])
    assert refused.exit_code == 1
    assert f"{stranger.address} signs with another key" in refused.output
    assert not known_keys(stranger.address)
    accepted = CliRunner().invoke(app, ["trust", "--yes", joined(replicas)])
    assert accepted.exit_code == 0, accepted.output
    assert len({known_keys(server.address) for server in replicas}) == 1


@pytest.mark.parametrize(("option", "value"), [("balance", "random"), ("hedge_after", 0)])
def test_wrong_options_are_refused(option: str, value: object) -> None:
    with pytest.raises(LazyfxError, match=f"{option} (is|must)"):
        lazyfx.connect(**{option: value})  # type: ignore[arg-type]


def test_a_call_that_waits_long_costs_few_health_checks_in_no_other_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(watching, "_LONGEST_QUIET_SECONDS", 0.2)
    monkeypatch.setattr(watching, "_LOOK_SECONDS", 0.005)
    checks: list[int] = []
    enough, closing = threading.Event(), threading.Event()

    def is_silent(_: Place) -> bool:
        checks.append(threading.get_ident())
        if len(checks) == 1:
            raise OSError  # the files of a new connection cannot be read; the watch goes on
        if len(checks) == 2:
            enough.set()
        return False

    def wait() -> bytes:
        assert enough.wait(60)
        closing.wait(0.5)
        return b"answer"

    watch = watching.ThreadWatch(is_silent, closing)
    assert watch.wait(lambda: None, Place(0), wait) == b"answer"
    closing.set()
    # Without a pause there would be about a hundred.
    assert 2 <= len(checks) <= 20
    assert len(set(checks)) == 1


async def test_a_closed_asynchronous_client_leaves_no_task(replicas: list[RunningServer]) -> None:
    async with lazyfx.connect_async(joined(replicas)) as client:
        await client.compile(graph_of(next(numbers)), [DCE])
        assert watches()
    assert not watches()


def watches() -> list[object]:
    tasks = asyncio.all_tasks()
    return [task for task in tasks if "TaskWatch" in getattr(task.get_coro(), "__qualname__", "")]

"""Clients that are closed while others use them, used after that, or never closed at all."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import DCE, graph_of, paused_workers, wait_until

import lazyfx
from lazyfx.errors import ClosedError, LazyfxError

_PATIENCE = 60.0


@pytest.fixture(scope="module")
def server(launch_for_file):
    return launch_for_file("--workers", "1")


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def outcomes(works: list[Callable[[], object]], meanwhile: Callable[[], object]) -> list[Any]:
    """How threads end while something else is done here."""
    found: list[Any] = []

    def run(work: Callable[[], object]) -> None:
        try:
            while True:
                found.append(work())
        except BaseException as error:  # noqa: BLE001 - asserted on by the caller
            found.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    meanwhile()
    for thread in threads:
        thread.join(_PATIENCE)
        assert not thread.is_alive(), "a thread waits for ever"
    return [each for each in found if isinstance(each, BaseException)]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_waiting_threads_get_an_error(silent: str) -> None:
    for i in range(5):
        client = lazyfx.connect(silent, timeout=600)

        def close(client: Any = client, i: int = i) -> None:
            time.sleep(0.02 * i)
            client.close()
            client.close()

        graphs = [graph_of(float(n)) for n in range(8)]
        works = [lambda g=g, c=client: c.compile(g, [DCE]) for g in graphs]
        ends = outcomes([*works, client.passes], close)
        assert [type(end) for end in ends] == [ClosedError] * 9, ends
        assert all(isinstance(end, LazyfxError) for end in ends)


def test_compiling_threads_get_an_error(server: Any) -> None:
    # Traced in this thread: torch itself breaks when two threads trace at a time.
    graphs = [graph_of(float(n)) for n in range(9)]
    for i in range(5):
        client = lazyfx.connect(server.address)

        def close(client: Any = client, i: int = i) -> None:
            time.sleep(0.01 * i)
            client.close()

        works = [
            lambda c=client, g=g: c.compile(g, [DCE], skip_cache_lookup=True).code for g in graphs
        ]
        ends = outcomes(works, close)
        assert [type(end) for end in ends] == [ClosedError] * 9, ends


def test_use_after_close(server: Any) -> None:
    client = lazyfx.connect(server.address)
    graph = graph_of(3.5)
    remote, built = client.compile(graph, [DCE]), client.compile(graph, [DCE])
    x = torch.ones(2)
    built(x)
    answers = client.compile_many([(graph, [DCE])])
    client.close()
    client.close()
    with client:
        pass
    for use in (
        lambda: client.compile(graph, [DCE]),
        lambda: list(client.compile_many([(graph, [DCE])])),
        lambda: list(answers),
        client.passes,
        client.pipelines,
        client.server_info,
        client.stats,
        lambda: remote.code,
        remote.picture,
        remote.graph_module,
        lambda: remote(x),
        lambda: remote.save_pickle("nowhere"),
        lambda: remote.provenance("code"),
    ):
        with pytest.raises(ClosedError):
            use()
    # What needs no client is still there.
    assert torch.equal(built(x), graph(x))
    assert remote.key
    assert repr(remote)
    assert client.address == server.address


async def test_the_asynchronous_client(silent: str, server: Any) -> None:
    client = lazyfx.connect_async(silent, timeout=600)
    works = [asyncio.ensure_future(client.compile(graph_of(float(n)), [DCE])) for n in range(5)]
    works.append(asyncio.ensure_future(client.passes()))
    works.append(asyncio.ensure_future(anext(client.compile_many([(graph_of(), [DCE])]))))
    cancelled = asyncio.ensure_future(client.passes())
    await asyncio.sleep(0.1)
    cancelled.cancel()
    await client.close()
    await client.close()
    ends = await asyncio.wait_for(asyncio.gather(*works, return_exceptions=True), _PATIENCE)
    assert [type(end) for end in ends] == [ClosedError] * 7, ends
    with pytest.raises((asyncio.CancelledError, ClosedError)):
        await cancelled

    async with lazyfx.connect_async(server.address) as closed:
        remote = await closed.compile(graph_of(), [DCE])
    for use in (lambda: closed.compile(graph_of(), [DCE]), closed.passes, remote.code):
        with pytest.raises(ClosedError):
            await use()


async def test_a_download_that_is_cut_by_closing(server: Any) -> None:
    client = lazyfx.connect_async(server.address)
    remote = await client.compile(graph_of(8.25), [DCE])
    with paused_workers(server.pid):
        code = asyncio.ensure_future(remote.code())
        await asyncio.sleep(0.2)
        await client.close()
        with pytest.raises(ClosedError):
            await asyncio.wait_for(code, _PATIENCE)


GRAPH = graph_of(77)


def files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def client_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "lazyfx-client"}


@pytest.mark.parametrize("used", [False, True])
def test_clients_that_are_dropped_leave_nothing(server: Any, used: bool) -> None:
    def drop(count: int) -> None:
        for i in range(count):
            client = lazyfx.connect(server.address)
            if used:
                remote = client.compile(graph_of(), [DCE])
                assert (remote.code if i % 2 else remote(torch.ones(1))) is not None

    with lazyfx.connect(server.address) as other:  # keeps gRPC's own threads and files
        other.passes()
        theirs = client_threads()  # and those of earlier tests, whose clients are still in use
        drop(2)
        gc.collect()
        wait_until(lambda: client_threads() <= theirs, "the first threads' end")
        before = files()
        drop(50)
        gc.collect()
        wait_until(lambda: client_threads() <= theirs, "the threads' end")
        wait_until(lambda: files() <= before + 5, "the files' end")


def threads() -> int:
    """All threads of this process, gRPC's own included."""
    return len(list(Path("/proc/self/task").iterdir()))


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.long
def test_a_thousand_clients_of_replicas_leave_nothing(server: Any) -> None:
    """The two addresses are of one server, which only its name tells."""
    port = server.address.rpartition(":")[2]

    async def connect_async() -> None:
        async with lazyfx.connect_async(f"{server.address},localhost:{port}") as client:
            await client.passes()

    async def connect(count: int) -> None:
        # The blocking client works in a thread with a running loop, too.
        for i in range(count):
            with lazyfx.connect(f"{server.address},localhost:{port}", hedge_after=1) as client:
                if i % 5 == 0:
                    client.compile(GRAPH, [DCE])
            if i % 5 == 1:
                await connect_async()

    asyncio.run(connect(200))
    gc.collect()
    before = (threads(), files(), resident_bytes())
    asyncio.run(connect(1000))
    gc.collect()
    wait_until(lambda: threads() <= before[0] + 5, "the threads' end")
    wait_until(lambda: files() <= before[1] + 5, "the files' end")
    # 1,000 channels that stay would hold more than 100 MB.
    assert resident_bytes() < before[2] + 32 * 2**20


def test_a_handle_keeps_its_client(server: Any) -> None:
    theirs = client_threads()
    remote = lazyfx.connect(server.address).compile(graph_of(4.5), [DCE])
    gc.collect()
    assert "def forward" in remote.code
    alive = weakref.ref(remote)
    del remote
    gc.collect()
    assert alive() is None
    wait_until(lambda: client_threads() <= theirs, "the thread's end")


async def test_asynchronous_clients_that_are_dropped_leave_nothing(server: Any) -> None:
    async def drop(count: int) -> None:
        for _ in range(count):
            await (await lazyfx.connect_async(server.address).compile(graph_of(), [DCE])).code()

    await drop(2)
    gc.collect()
    before = files()
    await drop(50)
    gc.collect()
    end = time.monotonic() + _PATIENCE
    while files() > before + 5:
        assert time.monotonic() < end, "files stay open"
        await asyncio.sleep(0.05)


class Folded(torch.nn.Module):
    """A product of a buffer alone, which can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight * 2


def test_a_call_from_the_clients_own_thread_is_refused(server: Any) -> None:
    errors: list[LazyfxError] = []

    def use(_sent: int, _total: int) -> None:
        with pytest.raises(LazyfxError, match="own callbacks") as caught:
            client.passes()
        errors.append(caught.value)

    with lazyfx.connect(server.address, on_upload=use) as client:
        program = torch.export.export(Folded(), (torch.ones(4, 4),))
        client.compile(program, ["constant_fold"])
    assert errors

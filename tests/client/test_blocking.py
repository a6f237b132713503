"""Calls in the caller's thread: interrupted, concurrent, and failing in callbacks."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import DCE, graph_of, paused_workers

import lazyfx
from lazyfx.errors import ClosedError
from lazyfx.flows import Flow, Open, Start


@pytest.fixture(scope="module")
def server(launch_for_file: Callable[..., Any]) -> Any:
    return launch_for_file("--workers", "1")


class Folded(torch.nn.Module):
    """A product of a buffer alone, which can be folded."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight * 2


TOUCHES: dict[str, Callable[[lazyfx.Client, lazyfx.RemoteModule, Any], object]] = {
    "compile": lambda client, _, graph: client.compile(graph, [DCE], skip_cache_lookup=True),
    "code": lambda client, remote, _: remote.code,
    "many": lambda client, _, graph: list(client.compile_many([(graph, [DCE])])),
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_ctrl_c_ends_the_call(server: Any, touch: str) -> None:
    with lazyfx.connect(server.address, timeout=120) as client:
        number = [*TOUCHES].index(touch)
        remote, graph = client.compile(graph_of(12.5 + number), [DCE]), graph_of(22.5 + number)
        with paused_workers(server.pid):
            timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                TOUCHES[touch](client, remote, graph)
            timer.join()
        assert client.compile(graph, [DCE]).code
        assert remote.code


def _kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


@pytest.mark.parametrize("step", [Start, Open])
def test_abandoned_calls_leave_nothing_behind(client: lazyfx.Client, step: Any) -> None:
    def left() -> Flow[None]:
        method = "GetStats" if step is Start else "GetArtifact"
        call = yield step(method, b"", 10.0)
        call.cancel()
        call.cancel()

    def leave(count: int) -> int:
        for _ in range(count):
            client._driver.run(left())
        gc.collect()
        return _kib()

    before = leave(300)
    # gRPC would keep 22 KiB of each.
    assert leave(1000) - before < 8_000
    assert client.passes()


def test_threads_that_compile_one_graph(server: Any) -> None:
    graph, x = graph_of(3.75), torch.ones(2)
    with lazyfx.connect(server.address) as client, ThreadPoolExecutor(8) as pool:
        handles = list(pool.map(lambda _: client.compile(graph, [DCE]), range(32)))
        assert len({handle.key for handle in handles}) == 1
        one = handles[0]
        assert len(set(pool.map(lambda _: one.code, range(16)))) == 1
        rendered = one.report.recompiles.performed
        # All call the module that one of them built.
        assert all(torch.equal(y, graph(x)) for y in pool.map(lambda _: one(x), range(16)))
        assert one.report.recompiles.performed == rendered + 1


class _Failing(Exception):
    pass


def _fail(_sent: int, _total: int) -> None:
    raise _Failing


def test_an_error_of_a_callback_reaches_its_caller(server: Any) -> None:
    program = torch.export.export(Folded(5), (torch.ones(5, 5),))
    with lazyfx.connect(server.address, on_upload=_fail) as client:
        with pytest.raises(_Failing):
            client.compile(program, ["constant_fold"])
        assert client.passes()


async def test_an_error_of_a_callback_reaches_the_asynchronous_caller(server: Any) -> None:
    program = torch.export.export(Folded(6), (torch.ones(6, 6),))
    async with lazyfx.connect_async(server.address, on_upload=_fail) as client:
        with pytest.raises(_Failing):
            await client.compile(program, ["constant_fold"])
        assert await client.passes()


def test_a_caller_that_waits_for_a_connection_gets_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = lazyfx.connect(f"127.0.0.1:{port}")
    with ThreadPoolExecutor(1) as pool:
        ready = pool.submit(client.is_ready, 60.0)
        time.sleep(0.5)
        client.close()
        with pytest.raises(ClosedError):
            ready.result(30)


def test_no_thread_is_behind_a_client(server: Any) -> None:
    with lazyfx.connect(server.address) as client:
        client.passes()
        before = threading.active_count()
        remote = client.compile(graph_of(9.125), [DCE])
        assert remote.code
        assert threading.active_count() <= before


def test_a_graph_is_rebuilt_without_the_modes_of_its_caller(server: Any) -> None:
    program = torch.export.export(Folded(), (torch.ones(4, 4),))
    with lazyfx.connect(server.address) as client:
        remote = client.compile(program, ["constant_fold"])
        with torch.inference_mode():
            remote(torch.ones(4, 4))
    x = torch.ones(4, 4, requires_grad=True)
    remote(x).sum().backward()
    assert x.grad is not None

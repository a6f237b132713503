"""Programs that fork with clients open, again and again, printing "ok" at their end.

Run as `python forking.py ADDRESS ROUNDS NAME...`.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import symbolic_trace

import lazyfx
from lazyfx.errors import ForkedProcessError

DCE = "dead_code_elimination"
ROUNDS = int(sys.argv[2])
_CHILD_SECONDS = 60.0


def doubled(x: Any) -> Any:
    return x * 2 + x * 2


GRAPH = symbolic_trace(doubled)
X = torch.ones(3)


def in_child(work: Callable[[], object], *, leave: Callable[[int], object] = os._exit) -> None:
    """Run something in a forked child, which must end by itself and without complaint."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            # A thread of gRPC's would read what the server sends to the parent.
            assert len(list(Path("/proc/self/task").iterdir())) == 1, "a thread was started"
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - the child's only way to tell
            traceback.print_exc()
        finally:
            leave(code)
    end = time.monotonic() + _CHILD_SECONDS
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert os.waitstatus_to_exitcode(status) == 0, os.waitstatus_to_exitcode(status)
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


def refused(work: Callable[[], object]) -> None:
    with pytest.raises(ForkedProcessError, match="after the fork"):
        work()


def clients(address: str) -> None:
    """Any use of a client or a handle in a child is an error at once; the parent continues."""
    held: list[Any] = [lazyfx.connect(address)]
    held.append(held[0].compile(GRAPH, [DCE]))
    held.append(held[0].compile(GRAPH, [DCE]))
    assert torch.equal(held[1](X), doubled(X))

    def use() -> None:
        client, remote, untouched = held
        refused(lambda: lazyfx.connect(address))
        refused(lambda: lazyfx.connect_async(address))
        refused(lambda: client.compile(GRAPH, [DCE]))
        refused(lambda: list(client.compile_many([(GRAPH, [DCE])])))
        refused(client.passes)
        refused(client.close)
        refused(lambda: remote.code)
        refused(untouched.graph_module)
        refused(lambda: untouched(X))
        with client:  # leaving the block raises no further error
            pass
        # What was built before still runs, and what was known can still be read.
        assert torch.equal(remote(X), doubled(X))
        assert remote.key
        assert "RemoteModule" in repr(remote)
        in_child(lambda: refused(client.passes))

    def drop() -> None:
        held.clear()
        gc.collect()

    for _ in range(ROUNDS):
        in_child(use)
        in_child(drop)
    in_child(use, leave=sys.exit)
    in_child(drop, leave=sys.exit)
    assert held[0].passes()
    held[0].close()
    # gRPC may still have threads then.
    in_child(lambda: refused(lambda: lazyfx.connect(address)))


def asynchronous(address: str) -> None:
    """The same of the asynchronous client, within its loop and without it."""

    async def use(client: lazyfx.AsyncClient, remote: lazyfx.AsyncRemoteModule) -> None:
        for what in (
            lambda: client.compile(GRAPH, [DCE]),
            client.passes,
            client.close,
            remote.code,
        ):
            with pytest.raises(ForkedProcessError):
                await what()
        assert torch.equal(await remote(X), doubled(X))

    async def main() -> None:
        client = lazyfx.connect_async(address)
        remote = await client.compile(GRAPH, [DCE])
        await remote(X)
        # A call is under way in the loop while it forks.
        busy = [asyncio.ensure_future(client.passes()) for _ in range(3)]
        await asyncio.sleep(0)

        def child() -> None:
            # As a program would that begins with a loop of its own.
            asyncio._set_running_loop(None)
            asyncio.run(use(client, remote))

        for _ in range(ROUNDS):
            in_child(child)
        assert all(await asyncio.gather(*busy))
        await client.close()

    asyncio.run(main())


def threads(address: str) -> None:
    """Forks during calls of other threads."""
    client = lazyfx.connect(address)
    stop = threading.Event()
    failed: list[BaseException] = []

    def call() -> None:
        try:
            while not stop.is_set():
                assert client.compile(GRAPH, [DCE]).code
        except BaseException as error:  # noqa: BLE001 - asserted on below
            failed.append(error)

    workers = [threading.Thread(target=call) for _ in range(4)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(ROUNDS):
            in_child(lambda: refused(lambda: client.compile(GRAPH, [DCE])))
            in_child(lambda: time.sleep(0.2))
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert not failed, failed
    client.close()


def before(address: str) -> None:
    """Children that were forked before any client work as any process does."""

    def use() -> None:
        with lazyfx.connect(address) as client:
            assert torch.equal(client.compile(GRAPH, [DCE])(X), doubled(X))

    in_child(use)

    def fork_later() -> None:
        use()
        in_child(lambda: refused(use))

    in_child(fork_later)


class Items(torch.utils.data.Dataset[Any]):
    """A data set that works with a compiled module, and may ask for another one."""

    def __init__(self, remote: Any, address: str) -> None:
        self.remote = remote
        self.address = address

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        if not self.address:
            return self.remote(torch.full((3,), float(index)))
        refused(lambda: lazyfx.connect(self.address).compile(GRAPH, [DCE]))
        return torch.ones(3)


def loaders(address: str) -> None:
    """Workers of a DataLoader and of multiprocessing."""
    with lazyfx.connect(address) as client:
        remote = client.compile(GRAPH, [DCE])
        remote(X)
        for asked in ("", address):
            loader = torch.utils.data.DataLoader(
                Items(remote, asked),
                num_workers=2,
                multiprocessing_context="fork",
                timeout=_CHILD_SECONDS,
            )
            assert len(list(loader)) == 4
        fork = multiprocessing.get_context("fork")
        for _ in range(ROUNDS):
            process = fork.Process(target=refused, args=(client.passes,))
            process.start()
            process.join(_CHILD_SECONDS)
            assert process.exitcode == 0, process.exitcode
        assert client.passes()


def backend(address: str) -> None:
    """In a child, torch.compile continues without the server and says why."""
    from lazyfx.backend import close_sessions

    options: dict[str, Any] = {"address": address, "compile": "eager", "on_error": "local"}

    def f(x: Any) -> Any:
        return torch.tanh(x) + 1

    def g(x: Any) -> Any:
        return torch.tanh(x) + 2

    compiled = torch.compile(f, backend="lazyfx", options=options)
    assert torch.equal(compiled(X), f(X))
    assert lazyfx.backend_report().remote == 1, str(lazyfx.backend_report())
    other = torch.compile(g, backend="lazyfx", options=options)
    loud = torch.compile(g, backend="lazyfx", options={**options, "on_error": "raise"})

    def child() -> None:
        assert torch.equal(compiled(X), f(X))
        assert torch.equal(other(X), g(X))
        report = lazyfx.backend_report()
        assert (len(report.graphs), report.remote) == (2, 1), str(report)
        assert "forked" in report.graphs[1].reason
        assert report.fallbacks == {"ForkedProcessError": 1}
        close_sessions()
        with pytest.raises(Exception, match="forked"):
            loud(torch.ones(3, 3))

    for _ in range(ROUNDS):
        in_child(child)
    assert torch.equal(other(X), g(X))
    assert lazyfx.backend_report().remote == 2


PROGRAMS = (clients, asynchronous, threads, before, loaders, backend)

if __name__ == "__main__":
    named = {program.__name__: program for program in PROGRAMS}
    for name in sys.argv[3:]:
        named[name](sys.argv[1])
    sys.stdout.write("ok")

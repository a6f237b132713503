"""A traced miss calls the functions listed in ARCHITECTURE.md, in that order."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FrameType

import grpc.aio
import pytest
from harness import DCE, PATIENCE, compile_request, graph_of

import lazyfx_server
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub
from lazyfx_server import app
from lazyfx_server.execution import SpawnSource
from lazyfx_server.execution.worker_loop import serve
from lazyfx_server.execution.worker_process import Worker
from lazyfx_server.settings.loading import load
from lazyfx_server.workers.pools import Sources

_PACKAGE = Path(lazyfx_server.__file__).parent
_HOP = re.compile(r"^\d+\. `([\w/]+)\.py: ([\w.]+)`", re.MULTILINE)
MOST_HOPS = 40

Place = tuple[str, str, int]
"""A function of the server: its file, its name and its first line."""


def hops() -> list[tuple[str, str]]:
    """Module and name of each function of the walk."""
    text = (_PACKAGE.parents[1] / "ARCHITECTURE.md").read_text("utf-8")
    section = text.partition("### A miss, function by function")[2].partition("\n## ")[0]
    return [(path.replace("/", "."), name) for path, name in _HOP.findall(section)]


def places_of(module: str, name: str) -> set[Place]:
    """A function, and those that are defined inside it."""
    found: object = importlib.import_module(f"lazyfx_server.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    function = inspect.unwrap(found)  # type: ignore[arg-type]
    assert inspect.isfunction(function), f"{name} of {module} is not a function"
    return {_place(code) for code in _codes(function.__code__)}


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _place(code: CodeType) -> Place:
    return code.co_filename, code.co_name, code.co_firstlineno


class Tracer:
    """Records which functions of the server are called, each once, and what called it first."""

    def __init__(self) -> None:
        self.calls: dict[Place, Place | None] = {}

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and _is_ours(frame.f_code):
            self.add(frame)

    def add(self, frame: FrameType) -> None:
        """Record the call of a frame."""
        place = _place(frame.f_code)
        if place not in self.calls:
            outer = frame.f_back
            while outer is not None and not _is_ours(outer.f_code):
                outer = outer.f_back
            self.calls[place] = None if outer is None else _place(outer.f_code)


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(str(_PACKAGE))


class TracedWorkers:
    """Starts workers whose jobs leave what they called in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._source = SpawnSource()

    def spawn(self, target: Callable[..., None], arguments: tuple[object, ...]):  # type: ignore[no-untyped-def]
        connection, function, *rest = arguments
        traced = partial(run_traced, function, self._file)
        return self._source.spawn(target, (connection, traced, *rest))


def run_traced(function: Callable[[bytes], bytes], file: Path, job: bytes) -> bytes:
    """Run a job, in a worker; each job overwrites the file."""
    tracer = Tracer()
    caller = sys._getframe(1)
    while caller.f_code is not serve.__code__:
        tracer.add(caller)
        assert caller.f_back is not None
        caller = caller.f_back
    tracer.calls = {_place(serve.__code__): None, **tracer.calls}
    sys.setprofile(tracer)
    try:
        return function(job)
    finally:
        sys.setprofile(None)
        file.write_text(json.dumps(list(tracer.calls.items())), "utf-8")


async def _miss(folder: Path) -> dict[Place, Place | None]:
    """What a server and its worker call for one miss, in the order in which they do."""
    tracer, file = Tracer(), folder / "calls.json"
    workers = TracedWorkers(file)
    flags = "--listen 127.0.0.1:0 --metrics-port 0 --workers 1 --sandbox off --native off"
    settings = load([*flags.split(), "--store-path", str(folder / "store")])
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    server = app.App(settings, Sources(workers, workers))
    serving = asyncio.ensure_future(server.run(stop, lambda address, _: ready.set_result(address)))
    await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
    async with grpc.aio.insecure_channel(await ready) as channel:
        stub = GraphCompilerStub(channel)
        request = compile_request(graph_of(), DCE)
        sys.setprofile(tracer)
        try:
            answer = await stub.Compile(request, timeout=PATIENCE)
        finally:
            sys.setprofile(None)
    stop.set()
    await serving
    assert answer.cache.status == pb.CACHE_STATUS_MISS
    in_worker = [
        (tuple(place), None if caller is None else tuple(caller))
        for place, caller in json.loads(file.read_text("utf-8"))
    ]
    in_server = list(tracer.calls.items())
    began = list(tracer.calls).index(_place(Worker.begin.__code__)) + 1
    return dict([*in_server[:began], *in_worker, *in_server[began:]])


def test_the_walk_is_what_a_miss_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A query for devices is a job too, and must not begin during the miss.
    monkeypatch.setattr(app, "_DEVICE_SECONDS", 3600.0)
    walk = hops()
    assert 0 < len(walk) <= MOST_HOPS
    listed = [places_of(module, name) for module, name in walk]
    calls = asyncio.run(_miss(tmp_path))
    order = list(calls)
    for places, hop in zip(listed, walk, strict=True):
        assert places & calls.keys(), f"a miss does not call {hop}"
    known = set().union(*listed)
    for places, hop in zip(listed, walk, strict=True):
        for place in places & calls.keys():
            caller = calls[place]
            assert caller is None or caller in known, f"{caller} calls {hop} and is not listed"
    steps = [min(order.index(place) for place in places & calls.keys()) for places in listed]
    for before, after, hop in zip(steps, steps[1:], walk[1:], strict=False):
        assert before < after, f"{hop} comes earlier"

"""A job that runs again gets what it asked for before, in one call, and nothing that it did not ask."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import nursery
import pytest
import torch
from harness import metrics, total
from hostile.relay import Relay, relayed
from torch import nn
from training.loops import Training, assert_same, batches, train

import lazyfx
from lazyfx.backend import close_sessions, compile_graph, dynamo_entry, reset_backend_report
from lazyfx.backend.sessions import session_for
from lazyfx.backend.warm_start import early_start, job_identity, receiving
from lazyfx.backend.warm_start.early_start import start_early
from lazyfx.errors import UnavailableError
from lazyfx.v1 import compiler_pb2 as pb

METHODS = pb.DESCRIPTOR.services_by_name["GraphCompiler"].methods_by_name
PATIENCE = 60.0


class Twice(nn.Module):
    """Two graphs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.scale = nn.Linear(8, width), nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.first(x))
        torch._dynamo.graph_break()
        return y * self.scale


@pytest.fixture(autouse=True)
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process runs a script of its own."""
    monkeypatch.delenv("LAZYFX_PREFETCH")
    monkeypatch.delenv("RANK", raising=False)
    script = str(tmp_path / "train.py")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", script, raising=False)
    monkeypatch.setattr(sys, "argv", [script, "--steps", "3"])


@pytest.fixture(autouse=True)
def _fresh_sessions() -> Iterator[None]:
    close_sessions()
    yield
    close_sessions()


def trained(server: Any, width: int, address: str = "", **options: object) -> Training:
    """Three steps in what stands for a new process."""
    torch._dynamo.reset()
    close_sessions()
    reset_backend_report()
    given = {"address": address or server.address, "on_error": "raise", **options}
    model = Twice(width)
    return train(model, batches(), torch.compile(model, backend="lazyfx", options=given))


def calls(server: Any) -> Counter[str]:
    samples = metrics(server.metrics_url)
    return Counter({m: int(total(samples, "lazyfx_requests_total", method=m)) for m in METHODS})


def sent(server: Any) -> int:
    samples = metrics(server.metrics_url)
    return int(total(samples, "lazyfx_artifact_bytes_total", kind="inductor"))


def prefetched() -> list[bool]:
    return [graph.prefetched for graph in lazyfx.backend_report().graphs]


def remembered(server: Any, before: Counter[str]) -> None:
    """Wait until the server has been told of the job."""
    close_sessions()
    end = time.monotonic() + PATIENCE
    while calls(server)["RememberJob"] == before["RememberJob"]:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_job_that_runs_again_makes_one_call(
    native_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = calls(native_server)
    first = trained(native_server, 53)
    assert prefetched() == [False, False]
    remembered(native_server, before)

    # On another machine, which has nothing, before there is a graph.
    started: list[bool] = []
    make_plan = dynamo_entry.make_plan

    def note(*given: Any) -> Any:
        started.append(session_for(native_server.address).warm_start._has_started)
        return make_plan(*given)

    monkeypatch.setattr(dynamo_entry, "make_plan", note)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "fresh"))
    torch._dynamo.reset()
    close_sessions()
    reset_backend_report()
    start_early(compile_graph)
    model = Twice(53)
    options = {"address": native_server.address, "on_error": "raise"}
    compiled = torch.compile(model, backend="lazyfx", options=options)
    before, whole = calls(native_server), sent(native_server)
    again = train(model, batches(), compiled)
    whole = sent(native_server) - whole
    assert calls(native_server) - before == {"Prefetch": 1}
    assert started == [True, True]
    assert prefetched() == [True, True]
    assert "remote (hit, prefetched)" in str(lazyfx.backend_report())

    # On a machine that has the kernels: only the rest is sent.
    before, few = calls(native_server), sent(native_server)
    third = trained(native_server, 53)
    few = sent(native_server) - few
    assert calls(native_server) - before == {"Prefetch": 1}
    assert prefetched() == [True, True]
    assert 0 < few < whole - 10_000

    # One of the kernels was removed: that graph is asked for, and only this kernel is sent.
    removed = next((tmp_path / "fresh" / "lazyfx").glob("*/k*.so"))
    content = removed.read_bytes()
    removed.unlink()
    before, some = calls(native_server), sent(native_server)
    fourth = trained(native_server, 53)
    some = sent(native_server) - some
    assert sorted(prefetched()) == [False, True]
    assert (calls(native_server) - before)["GetArtifact"] == 1
    assert few < some < whole + len(content)
    for training in (again, third, fourth):
        assert_same(training, first)


def test_another_model_takes_the_normal_path_and_is_remembered_too(
    native_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = calls(native_server)
    trained(native_server, 53)
    remembered(native_server, before)
    before = calls(native_server)
    changed = trained(native_server, 54)
    assert_same(changed, train(Twice(54), batches()))
    assert prefetched() == [False, False]
    remembered(native_server, before)
    again = trained(native_server, 54)
    assert prefetched() == [True, True]
    assert_same(again, changed)

    # Turned off, and in a process without a script.
    before = calls(native_server)
    trained(native_server, 54, prefetch=False)
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    trained(native_server, 54)
    assert not (calls(native_server) - before)["Prefetch"]


def test_a_compile_for_another_backend_contacts_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def note(address: str) -> Any:
        opened.append(address)
        raise UnavailableError("not here", code="UNAVAILABLE")

    monkeypatch.setattr(early_start, "session_for", note)
    torch._dynamo.reset()
    start_early(compile_graph)
    ours = torch.compile(Twice(5), backend="lazyfx", options={"address": "127.0.0.1:1"})
    options = {"address": "127.0.0.1:2"}
    torch.compile(Twice(5), backend="lazyfx", options=options)  # never called
    with torch.no_grad():
        torch.compile(Twice(5), backend="eager")(batches()[0][0])
        assert not opened
        with pytest.warns(lazyfx.FallbackWarning):
            ours(batches()[0][0])
    assert set(opened) == {"127.0.0.1:1"}


class EditedStream(Relay):
    """A relay whose streams of artifacts are edited."""

    edit_parts: Callable[[Iterator[pb.PrefetchResponse]], Iterator[pb.PrefetchResponse]]

    def Prefetch(self, request, context):  # type: ignore[no-untyped-def]
        yield from type(self).edit_parts(self._stub.Prefetch(request, timeout=60))

    def RememberJob(self, request, context):  # type: ignore[no-untyped-def]
        return self._stub.RememberJob(request, timeout=60)


def cut(parts: Iterator[pb.PrefetchResponse]) -> Iterator[pb.PrefetchResponse]:
    yield from [next(parts) for _ in range(4)]


def changed(parts: Iterator[pb.PrefetchResponse]) -> Iterator[pb.PrefetchResponse]:
    for part in parts:
        if part.artifact.chunk.data:
            data = bytearray(part.artifact.chunk.data)
            data[len(data) // 2] ^= 1
            part.artifact.chunk.data = bytes(data)
        yield part


def unsigned(parts: Iterator[pb.PrefetchResponse]) -> Iterator[pb.PrefetchResponse]:
    for part in parts:
        part.artifact.trailer.ClearField("signature") if part.artifact.HasField("trailer") else None
        yield part


def of_another_key(parts: Iterator[pb.PrefetchResponse]) -> Iterator[pb.PrefetchResponse]:
    for part in parts:
        if part.artifact.HasField("trailer"):
            part.artifact.trailer.signature.key_id = bytes(8)
        yield part


def of_another_module(parts: Iterator[pb.PrefetchResponse]) -> Iterator[pb.PrefetchResponse]:
    for part in parts:
        if part.HasField("module"):
            part.module.compiled.module_key = bytes(32)
        yield part


def silent(parts: Iterator[pb.PrefetchResponse]) -> Iterator[pb.PrefetchResponse]:
    yield next(parts)
    time.sleep(0.5)


def refused(parts: Iterator[pb.PrefetchResponse]) -> Iterator[pb.PrefetchResponse]:
    raise RuntimeError
    yield from parts


@contextmanager
def edited(address: str, edit: Any) -> Iterator[str]:
    kind = type("Edited", (EditedStream,), {"edit_parts": staticmethod(edit)})
    with relayed(address, kind) as (_, relay):
        yield relay


def test_nothing_that_is_damaged_or_not_signed_is_used_and_the_normal_path_goes_on(
    native_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "_PART_SECONDS", 0.1)
    before = calls(native_server)
    first = trained(native_server, 53)
    remembered(native_server, before)
    edits = (cut, changed, unsigned, of_another_key, of_another_module, silent, refused)
    for edit in edits:
        with edited(native_server.address, edit) as address:
            again = trained(native_server, 53, address)
        assert not any(prefetched()), edit.__name__
        assert lazyfx.backend_report().remote == 2
        assert_same(again, first)
    with edited(native_server.address, lambda parts: parts) as address:
        trained(native_server, 53, address)
        assert prefetched() == [True, True], "an honest relay"
    # An earlier server knows neither method.
    with relayed(native_server.address) as (_, address):
        assert_same(trained(native_server, 53, address), first)
        assert prefetched() == [False, False]


def test_a_key_that_is_not_the_pinned_one_ends_it_before_an_artifact_arrives(
    native_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAZYFX_VERIFY_KEYS", "ab" * 32)
    torch._dynamo.reset()
    before, bytes_before = calls(native_server), sent(native_server)
    with pytest.warns(lazyfx.FallbackWarning, match="NOT THE ONE THAT YOU TRUST"):
        trained(native_server, 53, on_error="eager")
    made = calls(native_server) - before
    assert not made["Compile"]
    assert not made["GetArtifact"]
    assert sent(native_server) == bytes_before


PROGRAM = """
import sys
import torch
from training.loops import batches, train
import lazyfx
model = torch.nn.Linear(8, int(sys.argv[1]))
train(model, batches(), torch.compile(model, backend="lazyfx"))
print(lazyfx.backend_report())
"""


def test_ranks_that_start_together_on_new_machines_make_one_call_each(
    native_server: Any, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(PROGRAM)

    def started(rank: int, run: int) -> Any:
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LAZYFX_ADDRESS": native_server.address,
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"cache-{run}-{rank}"),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        return nursery.start("inductor", [str(script), "55"], env=environment)

    before = calls(native_server)
    out, err = started(0, 0).communicate(PATIENCE)
    assert "1 graph, 1 remote" in out, err
    assert "prefetched" not in out
    assert (calls(native_server) - before)["RememberJob"] == 1
    before = calls(native_server)
    ranks = [started(rank, 1) for rank in (0, 1)]
    for rank in ranks:
        out, err = rank.communicate(PATIENCE)
        assert "remote (hit, prefetched)" in out, err
    assert calls(native_server) - before == {"Prefetch": 2}


def test_bytes_are_bounded_by_the_request(native_server: Any) -> None:
    before = calls(native_server)
    trained(native_server, 53)
    remembered(native_server, before)
    jobs = job_identity.job_digests()
    with grpc.insecure_channel(native_server.address) as channel:
        stub = lazyfx.v1.compiler_pb2_grpc.GraphCompilerStub(channel)

        def sizes(most: int, *, without: bool = True) -> list[int]:
            request = pb.PrefetchRequest(jobs=jobs, max_bytes=most, without_libraries=without)
            parts = list(stub.Prefetch(request, timeout=60))
            assert len(parts[0].plan.keys) == 2
            return [p.artifact.header.size_bytes for p in parts if p.artifact.HasField("header")]

        large, small = sizes(2**30)
        assert sum(sizes(2**30, without=False)) > large + small + 10_000
        assert sizes(large + small) == [large, small]
        assert sizes(large + small - 1) == [large]
        assert sizes(large - 1) == [small]
        assert sizes(0) == []


def test_closing_ends_a_stream_that_stands_still(native_server: Any) -> None:
    before = calls(native_server)
    trained(native_server, 53)
    remembered(native_server, before)
    release = threading.Event()

    def still(parts: Iterator[pb.PrefetchResponse]) -> Iterator[pb.PrefetchResponse]:
        yield next(parts)
        release.wait(60)

    with edited(native_server.address, still) as address:
        session = session_for(address)
        session.warm_start.start()
        made = session.warm_start._receiving
        assert made is not None
        end = time.monotonic() + PATIENCE
        while made._expected is None:
            assert time.monotonic() < end
            time.sleep(0.01)
        close_sessions()
        made._thread.join(PATIENCE)
        assert not made._thread.is_alive()
        release.set()

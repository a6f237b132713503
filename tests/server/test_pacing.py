"""Refusals cost bounded time for the caller and bounded memory for the server."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

from in_process import compiling_parts
from inline_executor import InlineExecutor

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.jobs.graph_job import run_job
from lazyfx_server.rpc.caller import Caller, enter
from lazyfx_server.rpc.calls_in_progress import forget_frames
from lazyfx_server.rpc.pacing import MAX_SECONDS, UNCOUNTED_BYTES, RefusalPacing
from lazyfx_server.rpc.service import GraphCompilerService
from lazyfx_server.settings.limits import CallLimits, QuotaLimits

MB = 2**20


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_megabytes_are_free_and_the_rest_is_paid_for() -> None:
    clock = _Clock()
    pacing = RefusalPacing(MB, clock)
    sizes = [4 * MB] * (UNCOUNTED_BYTES // (4 * MB))
    assert [pacing.delay("a", size) for size in sizes] == [0.0] * len(sizes)
    assert pacing.delay("a", MB) == 1.0
    assert pacing.delay("a", 100 * MB) == MAX_SECONDS
    assert pacing.delay("b", 4 * MB) == 0.0, "another connection owes nothing"


def test_what_is_owed_wears_off() -> None:
    clock = _Clock()
    pacing = RefusalPacing(MB, clock)
    assert pacing.delay("a", UNCOUNTED_BYTES + MB) == 1.0
    clock.now += 2.0
    assert pacing.delay("a", MB) == 0.0


def test_a_rate_of_0_delays_nothing() -> None:
    assert RefusalPacing(0).delay("a", 2**40) == 0.0


def test_many_connections_are_remembered_within_a_bound() -> None:
    pacing = RefusalPacing(1, _Clock())
    for number in range(10_000):
        pacing.delay(f"ipv4:127.0.0.1:{number}", 1)
    assert len(pacing._debts) <= 4096


class _Large:
    """Stands for the bytes of a request, which take no weak reference."""


def _refuse(large: _Large) -> None:
    try:
        {}["the cause"]
    except KeyError:
        assert large
        raise ValueError("refused") from None


def test_a_refusal_that_is_kept_keeps_no_request() -> None:
    large = _Large()
    gone = weakref.ref(large)
    gc.disable()
    try:
        try:
            _refuse(large)
        except ValueError as error:
            kept = error
        del large
        assert gone() is not None, "the frames hold it"
        forget_frames(kept)
        assert gone() is None
    finally:
        gc.enable()


async def test_refused_requests_of_a_batch_are_refused_bytes_of_their_connection(
    tmp_path: Path,
) -> None:
    """Those that are served, or asked to send more, are not."""
    wrong = pb.CompileBatchRequest(request_id=1, request=pb.CompileRequest(verify=True))
    missing = pb.CompileBatchRequest(
        request_id=2, request=pb.CompileRequest(graph_digest={"sha256": bytes(32)})
    )
    pacing = RefusalPacing(MB, _Clock())

    async def requests() -> AsyncIterator[bytes]:
        for message in (wrong, missing, wrong):
            yield message.SerializeToString()

    async with compiling_parts(tmp_path, InlineExecutor(run_job)) as parts:
        service = GraphCompilerService(
            compiler=parts.compiler, artifacts=parts.artifacts, decoder=parts.decoder,
            limits=CallLimits(), pacing=pacing, blobs=None, prefetching=None, ledger=None, registry=None,
            named=None, facts=None, store_stats=None, settle=lambda: None,
        )  # fmt: skip
        enter(Caller(parts.tenant, Quotas(QuotaLimits())))
        context = SimpleNamespace(peer=lambda: "ipv4:127.0.0.1:1", time_remaining=lambda: None)
        codes = {a.error.code async for a in service.CompileBatch(requests(), context)}
    assert codes == {3, 9}
    assert pacing._debts["ipv4:127.0.0.1:1"][0] == 2 * wrong.ByteSize()

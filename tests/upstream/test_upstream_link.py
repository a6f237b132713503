"""When the upstream is asked, and when it is given up: without a server, at the speed of the loop."""

from __future__ import annotations

import asyncio

import pytest

from lazyfx_server.compiling.forwarding import link as module
from lazyfx_server.compiling.forwarding.link import UpstreamLink
from lazyfx_server.compiling.forwarding.upstream_calls import UpstreamFailureError
from lazyfx_server.errors import FailedPreconditionError, InvalidRequestError
from lazyfx_server.upstream.inbound_call import VIA, InboundCalls, inbound_call


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_BUSY_SECONDS", "_IDLE_SECONDS", "_FIRST_RETRY_SECONDS", "_LAST_RETRY_SECONDS"):
        monkeypatch.setattr(module, name, 0.01)


class Upstream:
    """Answers health checks as it is told."""

    def __init__(self) -> None:
        self.serves = True
        self.checks = 0

    async def is_serving(self, seconds: float) -> bool:
        self.checks += 1
        return self.serves


async def forever() -> None:
    await asyncio.Event().wait()


async def turns(condition, what: str) -> None:  # type: ignore[no-untyped-def]
    for _ in range(1_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never happened: {what}")


async def _given_up() -> None:
    upstream = Upstream()
    link = UpstreamLink("central:8700", upstream.is_serving, 1.0)
    await link.connect()
    assert link.in_use
    assert await link.ask(asyncio.sleep(0, "answer")) == "answer"
    waiting = [asyncio.ensure_future(link.ask(forever())) for _ in range(3)]
    await asyncio.sleep(0)
    upstream.serves = False
    for failed in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(failed, UpstreamFailureError)
        assert failed.outcome == "unreachable"
    assert not link.in_use
    with pytest.raises(UpstreamFailureError):
        await link.ask(asyncio.sleep(0))
    generation = link.generation
    upstream.serves = True
    await turns(lambda: link.in_use, "it is used again")
    assert link.generation == generation + 1
    await link.close()


def test_all_who_wait_go_on_when_a_health_check_fails() -> None:
    asyncio.run(_given_up())


async def _caller_leaves() -> None:
    upstream = Upstream()
    link = UpstreamLink("central:8700", upstream.is_serving, 1.0)
    await link.connect()
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await forever()
        finally:
            ended.set()

    asking = asyncio.ensure_future(link.ask(work()))
    await asyncio.sleep(0.02)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(ended.wait(), 10)
    assert link.in_use
    await link.close()


def test_the_call_is_cancelled_when_its_caller_leaves() -> None:
    asyncio.run(_caller_leaves())


async def _paused() -> None:
    upstream = Upstream()
    link = UpstreamLink("central:8700", upstream.is_serving, 1.0)
    await link.connect()
    link.give_up("it has other versions", 3600.0)
    before = upstream.checks
    await asyncio.sleep(0.1)
    assert not link.in_use
    assert upstream.checks <= before + 1
    await link.close()


def test_what_only_an_operator_can_repair_is_not_tried_again_at_once() -> None:
    asyncio.run(_paused())


async def _broken_probe() -> None:
    async def is_serving(seconds: float) -> bool:
        raise ValueError("from a library")

    link = UpstreamLink("central:8700", is_serving, 1.0)
    await link.connect()
    assert not link.in_use
    await link.close()


def test_an_error_of_the_health_check_is_no_health() -> None:
    asyncio.run(_broken_probe())


async def _inbound_calls() -> None:
    calls, other = InboundCalls(), InboundCalls()
    calls.enter([("authorization", "Bearer x"), (VIA, other.own_id)], 5.0)
    call = inbound_call()
    assert (call.authorization, call.via) == ("Bearer x", (other.own_id,))
    assert 0 < (call.seconds_left() or 0) <= 5
    calls.enter([], None)
    assert inbound_call().seconds_left() is None
    ids = [f"{n:016x}" for n in range(17)]
    for via, reason in (
        (f"{ids[0]},{calls.own_id}", "through this server before"),
        (",".join(ids[:5]), "more than 4 servers"),
    ):
        with pytest.raises(FailedPreconditionError, match=rf"lazyfx-via.*{reason}"):
            calls.enter([(VIA, via)], None)
    for via in ("x" * 16, "0" * 16 + ",", ",".join(ids)):
        with pytest.raises(InvalidRequestError, match=r"lazyfx-via.*16 hexadecimal digits"):
            calls.enter([(VIA, via)], None)


def test_a_call_that_was_here_before_or_came_too_far_is_refused() -> None:
    asyncio.run(_inbound_calls())

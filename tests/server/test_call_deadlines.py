"""A call that takes too long is cancelled, and no other, whatever order calls end in."""

from __future__ import annotations

import asyncio

from lazyfx_server.rpc.call_deadlines import Deadline, Deadlines


def test_only_overdue_calls_are_cancelled() -> None:
    async def main() -> None:
        deadlines = Deadlines(0.2)
        ended: list[str] = []

        async def call(name: str, seconds: float) -> None:
            deadline = deadlines.begin()
            try:
                await asyncio.sleep(seconds)
                ended.append(name)
            except asyncio.CancelledError:
                ended.append(f"{name} {'overran' if deadline.passed else 'was cancelled'}")
            finally:
                deadlines.end(deadline)

        first = asyncio.ensure_future(call("first", 0.0))
        stuck = asyncio.ensure_future(call("stuck", 60.0))
        left = asyncio.ensure_future(call("left", 60.0))
        await first
        left.cancel()
        await asyncio.sleep(0.1)
        later = asyncio.ensure_future(call("later", 60.0))
        await asyncio.gather(stuck, later, left)
        assert ended == ["first", "left was cancelled", "stuck overran", "later overran"]

    asyncio.run(main())


def test_a_call_that_ended_is_not_kept() -> None:
    async def main() -> None:
        deadlines = Deadlines(60.0)
        deadline = deadlines.begin()
        assert isinstance(deadline, Deadline)
        deadlines.end(deadline)
        deadlines.end(deadline)
        assert not deadlines._running

    asyncio.run(main())

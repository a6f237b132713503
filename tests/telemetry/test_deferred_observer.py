"""Events are delivered after the answer, merged where only sums count, and never lost."""

from __future__ import annotations

import asyncio

from lazyfx_server.telemetry import (
    DeferredObserver,
    Event,
    LookupMade,
    Observers,
    OverheadSpent,
    RequestHandled,
    Reused,
)


class Recorder:
    """Keeps the events that it observes."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.received = asyncio.Event()

    def observe(self, event: Event) -> None:
        """Keep it."""
        self.events.append(event)
        self.received.set()


def test_events_are_delivered_when_the_caller_is_done() -> None:
    async def main() -> None:
        recorder = Recorder()
        later = DeferredObserver(recorder)
        later.observe(LookupMade("hit"))
        assert recorder.events == []
        await asyncio.wait_for(recorder.received.wait(), 60)
        recorder.received.clear()
        later.observe(LookupMade("joined"))
        await asyncio.wait_for(recorder.received.wait(), 60)
        assert recorder.events == [LookupMade("hit"), LookupMade("joined")]

    asyncio.run(main())


def test_all_events_are_delivered_once_before_the_counts_are_read() -> None:
    async def main() -> None:
        recorder = Recorder()
        later = DeferredObserver(recorder)
        later.observe(LookupMade("hit"))
        later.settle()
        assert recorder.events == [LookupMade("hit")]
        later.settle()
        await asyncio.sleep(0.1)
        assert recorder.events == [LookupMade("hit")]

    asyncio.run(main())


def test_only_events_that_add_to_the_same_sums_are_merged() -> None:
    async def main() -> None:
        recorder = Recorder()
        later = DeferredObserver(recorder)
        for tenant in ("a", "b", "a"):
            later.observe(LookupMade("hit", tenant=tenant))
            later.observe(Reused(0.5, tenant))
            later.observe(OverheadSpent("key", 0.25, tenant))
            later.observe(RequestHandled("Compile", "OK", (0.125,)))
        later.observe(LookupMade("miss", "new_graph", "a"))
        later.settle()
        assert sorted(map(repr, recorder.events)) == sorted(
            map(
                repr,
                [
                    LookupMade("hit", tenant="a", count=2),
                    LookupMade("hit", tenant="b"),
                    LookupMade("miss", "new_graph", "a"),
                    Reused(1.0, "a"),
                    Reused(0.5, "b"),
                    OverheadSpent("key", 0.5, "a"),
                    OverheadSpent("key", 0.25, "b"),
                    *[RequestHandled("Compile", "OK", (0.125,))] * 3,
                ],
            )
        )

    asyncio.run(main())


def test_hits_that_are_counted_together_add_up_by_tenant() -> None:
    async def main() -> None:
        recorder = Recorder()
        later = DeferredObserver(recorder)
        later.observe(RequestHandled("GetStats", "OK", (1.0,)))
        for tenant, seconds in (("a", 0.25), ("b", 0.5), ("a", 0.125)):
            later.hit(seconds, reused_seconds=2.0, tenant=tenant)
        await asyncio.wait_for(recorder.received.wait(), 60)
        later.settle()
        expected: list[Event] = [
            LookupMade("hit", tenant="a", count=2),
            LookupMade("hit", tenant="b"),
            Reused(4.0, "a"),
            Reused(2.0, "b"),
            OverheadSpent("key", 0.375, "a"),
            OverheadSpent("key", 0.5, "b"),
            RequestHandled("GetStats", "OK", (1.0,)),
            RequestHandled("Compile", "OK", (0.25, 0.125)),
            RequestHandled("Compile", "OK", (0.5,)),
        ]
        assert recorder.events == expected

    asyncio.run(main())


def test_an_observer_that_fails_takes_nothing_from_the_others() -> None:
    class Failing:
        def observe(self, event: Event) -> None:
            """Fail."""
            raise RuntimeError(event)

    async def main() -> None:
        recorder = Recorder()
        later = DeferredObserver(Observers(Failing(), recorder))
        later.observe(LookupMade("hit"))
        later.observe(LookupMade("joined"))
        later.settle()
        assert recorder.events == [LookupMade("hit"), LookupMade("joined")]

    asyncio.run(main())

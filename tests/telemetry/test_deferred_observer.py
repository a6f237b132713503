"""Events are delivered after the answer, in order, and never lost."""

from __future__ import annotations

import asyncio

from lazyfx_server.telemetry import DeferredObserver, Event, LookupMade, Observers, Reused


class Recorder:
    """Keeps the events that it observes."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, event: Event) -> None:
        """Keep it."""
        self.events.append(event)


def test_events_are_delivered_in_order_when_the_caller_is_done() -> None:
    async def main() -> None:
        recorder = Recorder()
        later = DeferredObserver(recorder)
        sent: list[Event] = [LookupMade("hit"), Reused(1.0), LookupMade("hit")]
        for event in sent:
            later.observe(event)
        assert recorder.events == []
        await asyncio.sleep(0)
        assert recorder.events == sent
        later.observe(sent[0])
        await asyncio.sleep(0)
        assert recorder.events == [*sent, sent[0]]

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
        await asyncio.sleep(0)
        assert recorder.events == [LookupMade("hit"), LookupMade("joined")]

    asyncio.run(main())

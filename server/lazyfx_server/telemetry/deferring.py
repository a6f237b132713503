"""Passes events on a moment after the answer, and merges those of many hits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from lazyfx_server.telemetry.events import (
    Event,
    LookupMade,
    LookupResult,
    Observer,
    OverheadSpent,
    RequestHandled,
    Reused,
)

_SECONDS: Final = 0.02
"""How long an event waits: long enough for the hits of a busy server to be counted together."""


class DeferredObserver:
    """Passes events on a little later, or when the counts are about to be read.

    A request emits events when it ends, and its answer need not wait until they are counted. Under
    load, counting each hit alone would cost a third of the hit. Events that only add to a sum are
    merged and passed on first; the others follow in their order.

    Args:
        observer: Receives the events.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._events: list[Event] = []
        self._hits: dict[str, tuple[list[float], list[float]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def observe(self, event: Event) -> None:
        """Queue an event; must be called in the event loop."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SECONDS, self.settle)
        self._events.append(event)

    def hit(self, seconds: float, reused_seconds: float, tenant: str) -> None:
        """Queue the events of a call that was a hit.

        Args:
            seconds: The duration of the call.
            reused_seconds: How long the compile took that it saved.
            tenant: Whose call it was.
        """
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SECONDS, self.settle)
        hits = self._hits.get(tenant)
        if hits is None:
            hits = self._hits[tenant] = ([], [])
        hits[0].append(seconds)
        hits[1].append(reused_seconds)

    def settle(self) -> None:
        """Pass on all queued events now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        events, self._events = self._events, []
        hits, self._hits = self._hits, {}
        for event in _merged((*events, *_of_hits(hits))):
            self._observer.observe(event)


def _of_hits(hits: Mapping[str, tuple[list[float], list[float]]]) -> Iterator[Event]:
    """The events of hits: by tenant, the seconds of the calls, and those that they saved."""
    for tenant, (seconds, reused) in hits.items():
        yield LookupMade("hit", tenant=tenant, count=len(seconds))
        yield Reused(sum(reused), tenant)
        yield OverheadSpent("key", sum(seconds), tenant)
        yield RequestHandled("Compile", "OK", tuple(seconds))


def _merged(events: Iterable[Event]) -> Iterator[Event]:
    """Those that only add to sums, one for each sum; then the others, in their order."""
    lookups: dict[tuple[LookupResult, str, str], int] = {}
    reused: dict[str, float] = {}
    overhead: dict[tuple[str, str], float] = {}
    others: list[Event] = []
    for event in events:
        if isinstance(event, LookupMade):
            lookup = (event.result, event.miss_reason, event.tenant)
            lookups[lookup] = lookups.get(lookup, 0) + event.count
        elif isinstance(event, Reused):
            reused[event.tenant] = reused.get(event.tenant, 0.0) + max(0.0, event.seconds)
        elif isinstance(event, OverheadSpent):
            spent = (event.stage, event.tenant)
            overhead[spent] = overhead.get(spent, 0.0) + max(0.0, event.seconds)
        else:
            others.append(event)
    for lookup, count in lookups.items():
        yield LookupMade(*lookup, count)
    for tenant, seconds in reused.items():
        yield Reused(seconds, tenant)
    for (stage, tenant), seconds in overhead.items():
        yield OverheadSpent(stage, seconds, tenant)
    yield from others

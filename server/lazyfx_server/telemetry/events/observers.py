"""Any event, and who receives it."""

from __future__ import annotations

import logging
from typing import Protocol, TypeAlias

from lazyfx_server.telemetry.events.boundary_events import (
    EntryCorrupt,
    RequestHandled,
    StoreFailed,
    StoreSkipped,
    UpstreamAsked,
    UpstreamTransferred,
)
from lazyfx_server.telemetry.events.compile_events import (
    ArtifactServed,
    CompileFinished,
    FleetFlightEnded,
    FlightAbandoned,
    LookupMade,
    NativeCompiled,
    OverheadSpent,
    RecompilesPerformed,
    Reused,
)
from lazyfx_server.telemetry.events.job_events import (
    GraphRefused,
    JobRetried,
    JobStarted,
    SourceRefused,
    WorkerRestarted,
    WorkRefused,
)

_log = logging.getLogger(__name__)

Event: TypeAlias = (
    LookupMade
    | Reused
    | CompileFinished
    | RecompilesPerformed
    | OverheadSpent
    | ArtifactServed
    | SourceRefused
    | NativeCompiled
    | JobStarted
    | WorkRefused
    | FlightAbandoned
    | FleetFlightEnded
    | JobRetried
    | GraphRefused
    | StoreFailed
    | StoreSkipped
    | EntryCorrupt
    | WorkerRestarted
    | RequestHandled
    | UpstreamAsked
    | UpstreamTransferred
)


class Observer(Protocol):
    """Receives events. Called in the event loop: must return within microseconds."""

    def observe(self, event: Event) -> None:
        """Records an event."""


class Observers:
    """Several observers as one; without any, events are ignored.

    An exception in an observer is logged and affects neither the request nor other observers.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def observe(self, event: Event) -> None:
        """Pass an event to every observer."""
        for observer in self._observers:
            try:
                observer.observe(event)
            except Exception:  # noqa: BLE001 - telemetry must never fail what it observes
                _log.exception("an observer failed on %s", type(event).__name__)

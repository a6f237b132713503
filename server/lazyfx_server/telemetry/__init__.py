"""Events, observers, and the exporters at the edge.

The exporters are imported from their own files (`prometheus`, `http`), so that
packages that only emit events load nothing more.
"""

from lazyfx_server.telemetry.deferring import DeferredObserver
from lazyfx_server.telemetry.events import (
    ArtifactServed,
    CompileFinished,
    EntryCorrupt,
    Event,
    FleetFlightEnded,
    FlightAbandoned,
    GraphRefused,
    JobRetried,
    JobStarted,
    KernelProvided,
    LookupMade,
    NativeCompiled,
    Observer,
    Observers,
    OverheadSpent,
    PassFinished,
    RecompilesPerformed,
    RequestHandled,
    Reused,
    SourceRefused,
    StoreFailed,
    StoreSkipped,
    UpstreamAsked,
    UpstreamTransferred,
    WorkerRestarted,
    WorkRefused,
)
from lazyfx_server.telemetry.gauges import DeviceMemory, Gauges

__all__ = [
    "ArtifactServed",
    "CompileFinished",
    "DeferredObserver",
    "DeviceMemory",
    "EntryCorrupt",
    "Event",
    "FleetFlightEnded",
    "FlightAbandoned",
    "Gauges",
    "GraphRefused",
    "JobRetried",
    "JobStarted",
    "KernelProvided",
    "LookupMade",
    "NativeCompiled",
    "Observer",
    "Observers",
    "OverheadSpent",
    "PassFinished",
    "RecompilesPerformed",
    "RequestHandled",
    "Reused",
    "SourceRefused",
    "StoreFailed",
    "StoreSkipped",
    "UpstreamAsked",
    "UpstreamTransferred",
    "WorkRefused",
    "WorkerRestarted",
]

"""Events as data. Packages emit them; exporters turn them into metrics and traces.

Events carry no digests or keys: they are counted, not searched. They carry the tenant's name for
the ledger; exporters omit it. A field with few values has a type that lists them, and metrics take
the values of their labels from there.
"""

from lazyfx_server.telemetry.events.boundary_events import (
    EntryCorrupt,
    RequestHandled,
    StoreFailed,
    StoreSkipped,
    UpstreamAsked,
    UpstreamOutcome,
    UpstreamQuestion,
    UpstreamTransferred,
)
from lazyfx_server.telemetry.events.compile_events import (
    Abandonment,
    ArtifactServed,
    ArtifactSource,
    CompileFinished,
    FleetFlightEnded,
    FleetOutcome,
    FlightAbandoned,
    LookupMade,
    LookupResult,
    NativeCompiled,
    NativeResult,
    OverheadSpent,
    PassFinished,
    RecompilesPerformed,
    Reused,
    Stage,
)
from lazyfx_server.telemetry.events.job_events import (
    GraphRefused,
    JobRetried,
    JobStarted,
    PoolName,
    RefusalReason,
    SourceRefused,
    WorkerRestarted,
    WorkRefused,
)
from lazyfx_server.telemetry.events.observers import Event, Observer, Observers

__all__ = [
    "Abandonment",
    "ArtifactServed",
    "ArtifactSource",
    "CompileFinished",
    "EntryCorrupt",
    "Event",
    "FleetFlightEnded",
    "FleetOutcome",
    "FlightAbandoned",
    "GraphRefused",
    "JobRetried",
    "JobStarted",
    "LookupMade",
    "LookupResult",
    "NativeCompiled",
    "NativeResult",
    "Observer",
    "Observers",
    "OverheadSpent",
    "PassFinished",
    "PoolName",
    "RecompilesPerformed",
    "RefusalReason",
    "RequestHandled",
    "Reused",
    "SourceRefused",
    "Stage",
    "StoreFailed",
    "StoreSkipped",
    "UpstreamAsked",
    "UpstreamOutcome",
    "UpstreamQuestion",
    "UpstreamTransferred",
    "WorkRefused",
    "WorkerRestarted",
]

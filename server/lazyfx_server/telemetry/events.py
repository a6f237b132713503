"""Events as data. Packages emit them; exporters turn them into metrics and traces.

Events carry no digests or keys: they are counted, not searched. They carry the tenant's name for
the ledger; exporters omit it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol, TypeAlias

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LookupMade:
    """A compile request found its result, joined one in flight, or began one.

    Attributes:
        result: "hit", "miss" or "joined".
        miss_reason: For a miss, the name of the MissReason, e.g. "new_graph"; the full name
            "MISS_REASON_NEW_GRAPH" is accepted too.
        tenant: Whose request it was.
        count: How many such requests, if several were merged.
    """

    result: str
    miss_reason: str = ""
    tenant: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Reused:
    """A hit or a join saved its caller a compile.

    Attributes:
        seconds: How long that compile took; the sum, if several events were merged.
        tenant: Whose request it was.
    """

    seconds: float
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class PassFinished:
    """One pass of a compile; part of CompileFinished.

    Attributes:
        name: The pass.
        seconds: Wall seconds in it.
        requested: Times that it called recompile().
        performed: Times that code was generated while it ran.
        runs: Times that it ran.
    """

    name: str
    seconds: float
    requested: int = 0
    performed: int = 0
    runs: int = 1


@dataclass(frozen=True, slots=True)
class CompileFinished:
    """A worker compiled a graph.

    Attributes:
        seconds: Wall seconds in the worker: decode, passes, encode.
        pass_seconds: Seconds of that inside passes.
        codec_seconds: Seconds of that decoding and encoding.
        queue_seconds: Seconds that the request waited for a worker.
        overhead_seconds: Seconds from arrival to answer that were not spent in passes; includes
            `codec_seconds` and `queue_seconds`.
        saved_seconds: Estimated seconds of code generation that laziness saved.
        passes: The passes that ran.
        pipeline_requested: Calls of recompile() between passes.
        performed: Code generations as (pass name or "" between passes, trigger, count).
        performed_seconds: Measured seconds of those.
        saved_is_measured: `saved_seconds` is based on the measured cost of the same graph.
        tenant: Whose request it was.
    """

    seconds: float
    pass_seconds: float = 0.0
    codec_seconds: float = 0.0
    queue_seconds: float = 0.0
    overhead_seconds: float = 0.0
    saved_seconds: float = 0.0
    passes: tuple[PassFinished, ...] = ()
    pipeline_requested: int = 0
    performed: tuple[tuple[str, str, int], ...] = ()
    performed_seconds: float = 0.0
    saved_is_measured: bool = False
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class RecompilesPerformed:
    """Code was generated outside a compile, because an artifact needed it.

    Attributes:
        pass_name: The pass that ran, or empty.
        trigger: What needed the code, e.g. "code", "pickle" or "torchscript".
        count: How many times.
        seconds: Seconds that it took.
        tenant: Whose module it was.
    """

    pass_name: str
    trigger: str
    count: int
    seconds: float = 0.0
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class OverheadSpent:
    """Overhead of the service that no CompileFinished includes.

    Attributes:
        stage: "key".
        seconds: How long.
        tenant: Whose request it was.
    """

    stage: str
    seconds: float
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class SourceRefused:
    """Generated source did not match its graph and was not served.

    Attributes:
        job: "compile" or "render".
    """

    job: str


@dataclass(frozen=True, slots=True)
class JobStarted:
    """A job got a worker.

    Attributes:
        pool: "pass" or "native".
        priority: "interactive", "batch" or "prewarm".
        waited: Seconds that it waited.
    """

    pool: str
    priority: str
    waited: float


@dataclass(frozen=True, slots=True)
class WorkRefused:
    """A job was refused before it began.

    Attributes:
        pool: "pass" or "native".
        reason: "queue" if too much was waiting, "deadline" if it would not have ended in time,
            "memory" if the memory of the server was nearly used up.
    """

    pool: str
    reason: str


@dataclass(frozen=True, slots=True)
class NativeCompiled:
    """A native compile ended.

    Attributes:
        result: "made", "failed", "stopped" because no caller waited for it any more, or
            "only_traced" because floats must be constants first.
    """

    result: str


@dataclass(frozen=True, slots=True)
class KernelProvided:
    """A native job asked for the output of a C++ compile, and got it.

    Attributes:
        source: "found" in the store; "joined" the compile of another job; "compiled" for this one;
            or "failed" in the compiler.
        spent_seconds: Seconds in the compiler for this job.
        saved_seconds: Seconds that the compile took whose output was used again.
    """

    source: str
    spent_seconds: float = 0.0
    saved_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class JobRetried:
    """A job whose worker died was given to another worker.

    Attributes:
        job: "compile", "render", "native" or "describe".
    """

    job: str


@dataclass(frozen=True, slots=True)
class GraphRefused:
    """A job was refused because workers have died on its graph.

    Attributes:
        job: "compile", "render" or "native".
    """

    job: str


@dataclass(frozen=True, slots=True)
class FlightAbandoned:
    """The last caller waiting for a single flight went away.

    Attributes:
        stage: "compile", "render" or "kernel".
        outcome: "dropped" before it began, "stopped", or "continued" to its end.
    """

    stage: str
    outcome: str


@dataclass(frozen=True, slots=True)
class FleetFlightEnded:
    """A flight of servers that share a store ended on this one.

    Attributes:
        stage: "compile", "render" or "kernel".
        outcome: "led": made here, under the lease; "joined": another server made it; "taken_over":
            made here, because the server that held the lease has ended, failed or stopped;
            "hedged": made here, because another server took too long; "unleased": made here,
            because the store of leases did not answer; "outrun": begun here, and another server was
            first.
    """

    stage: str
    outcome: str


@dataclass(frozen=True, slots=True)
class ArtifactServed:
    """An artifact was sent to a client.

    Attributes:
        kind: E.g. "code", "pickle" or "inductor".
        source: "rendered" for this request, or "cached".
        bytes: Bytes sent.
        seconds: Seconds that rendering took, now or when it was cached.
    """

    kind: str
    source: str
    bytes: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """A tier of the store failed; the operation was answered as a miss.

    Attributes:
        tier: Its name: "memory", "disk".
        operation: "get", "put", "contains" or "delete".
    """

    tier: str
    operation: str


@dataclass(frozen=True, slots=True)
class StoreSkipped:
    """A tier of the store was not asked, because it does not answer at present.

    Attributes:
        tier: "redis" or "s3".
        operation: "get", "put", "contains" or "delete".
    """

    tier: str
    operation: str


@dataclass(frozen=True, slots=True)
class EntryCorrupt:
    """A corrupt entry was found and quarantined.

    Attributes:
        tier: The name of the tier.
    """

    tier: str


@dataclass(frozen=True, slots=True)
class WorkerRestarted:
    """A worker process was replaced.

    Attributes:
        reason: "crash", "timeout", "recycled" or "cancelled".
    """

    reason: str


@dataclass(frozen=True, slots=True)
class RequestHandled:
    """An RPC ended.

    Attributes:
        method: Its name without the service: "Compile".
        code: Name of the gRPC status code, e.g. "OK".
        seconds: Its duration.
    """

    method: str
    code: str
    seconds: float


@dataclass(frozen=True, slots=True)
class UpstreamAsked:
    """The upstream server was asked for something.

    Attributes:
        what: "compile" or "artifact".
        outcome: "answered"; "refused" (the caller is told); "left" (the caller left); "values" (the
            caller is asked for values); or why the work was done here: "unreachable", "denied",
            "incompatible", "failed", "invalid".
    """

    what: str
    outcome: str


@dataclass(frozen=True, slots=True)
class UpstreamTransferred:
    """Bytes of messages went to the upstream server, or came from it.

    Attributes:
        sent: Bytes that were sent.
        received: Bytes that were received.
    """

    sent: int
    received: int


Event: TypeAlias = (
    LookupMade
    | Reused
    | CompileFinished
    | RecompilesPerformed
    | OverheadSpent
    | ArtifactServed
    | SourceRefused
    | NativeCompiled
    | KernelProvided
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

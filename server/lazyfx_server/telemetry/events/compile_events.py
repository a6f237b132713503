"""What compiles and renderings did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

LookupResult: TypeAlias = Literal["hit", "miss", "joined"]
Stage: TypeAlias = Literal["compile", "render", "kernel"]
KernelSource: TypeAlias = Literal["found", "joined", "compiled", "failed"]
NativeResult: TypeAlias = Literal["made", "only_traced", "failed", "stopped"]
ArtifactSource: TypeAlias = Literal["rendered", "cached", "prefetched"]
Abandonment: TypeAlias = Literal["dropped", "stopped", "continued"]
"""What happens to an abandoned flight: it had not begun, it is stopped, or it continues."""
FleetOutcome: TypeAlias = Literal["led", "joined", "taken_over", "hedged", "unleased", "outrun"]
"""How a flight of servers that share a store ended on this one: led, made here under the lease;
joined, another server made it; taken over, made here because the server that held the lease has
ended, failed or stopped; hedged, made here because another server took too long; unleased, made
here because the store of leases did not answer; outrun, begun here, and another was first."""


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

    result: LookupResult
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
class NativeCompiled:
    """A native compile ended.

    Attributes:
        result: "made", "failed", "stopped" because no caller waited for it any more, or
            "only_traced" because floats must be constants first.
        repeated_blocks: Blocks that were not compiled because they equal others.
    """

    result: NativeResult
    repeated_blocks: int = 0


@dataclass(frozen=True, slots=True)
class KernelProvided:
    """A native job asked for the output of a C++ compile, and got it.

    Attributes:
        source: "found" in the store; "joined" the compile of another job; "compiled" for this one;
            or "failed" in the compiler.
        spent_seconds: Seconds in the compiler for this job.
        saved_seconds: Seconds that the compile took whose output was used again.
    """

    source: KernelSource
    spent_seconds: float = 0.0
    saved_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ArtifactServed:
    """An artifact was sent to a client.

    Attributes:
        kind: E.g. "code", "pickle" or "inductor".
        source: "rendered" for this request, "cached", or "prefetched": sent before the client asked
            for it.
        bytes: Bytes sent.
        seconds: Seconds that rendering took, now or when it was cached.
    """

    kind: str
    source: ArtifactSource
    bytes: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class FlightAbandoned:
    """The last caller waiting for a single flight went away.

    Attributes:
        stage: "compile", "render" or "kernel".
        outcome: What happens to it.
    """

    stage: Stage
    outcome: Abandonment


@dataclass(frozen=True, slots=True)
class FleetFlightEnded:
    """A flight of servers that share a store ended on this one.

    Attributes:
        stage: "compile", "render" or "kernel".
        outcome: How it ended.
    """

    stage: Stage
    outcome: FleetOutcome

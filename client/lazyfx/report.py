"""What a compile did, typed; made fresh from the server's numbers each time it is read."""

from __future__ import annotations

from dataclasses import dataclass

from lazyfx.v1 import compiler_pb2 as pb


@dataclass(frozen=True)
class Recompiles:
    """Python-code recompiles: asked for, done, and never done."""

    requested: int
    performed: int

    @property
    def saved(self) -> int:
        """Requested - performed, never below 0."""
        return max(0, self.requested - self.performed)


@dataclass(frozen=True)
class PassReport:
    """What one pass did.

    Attributes:
        name: The pass.
        spelling: The pass with its options, in canonical form.
        seconds: Wall seconds in the worker.
        nodes_before: Nodes of all graphs before.
        nodes_after: Nodes of all graphs after.
        changed: Whether the graph changed.
        recompiles: Recompiles during the pass.
        note: Something a person should know.
    """

    name: str
    spelling: str
    seconds: float
    nodes_before: int
    nodes_after: int
    changed: bool
    recompiles: Recompiles
    note: str


@dataclass(frozen=True)
class Report:
    """What a compile did; on a hit, what the stored compile did.

    Attributes:
        recompiles: Of the module, later touches included.
        passes: In the order in which they ran.
        seconds: Wall seconds in the worker: decode, passes, encode.
        pass_seconds: Seconds of that inside passes.
        queue_seconds: Seconds that the job waited for a worker.
        saved_seconds: Estimated seconds of code generation that laziness saved.
        nodes_before: Nodes of the graph that was sent.
        nodes_after: Nodes of the graph that came out.
        pipeline: The pipeline's canonical spelling.
        stale: No code has been generated for the graph yet.
    """

    recompiles: Recompiles
    passes: tuple[PassReport, ...]
    seconds: float
    pass_seconds: float
    queue_seconds: float
    saved_seconds: float
    nodes_before: int
    nodes_after: int
    pipeline: str
    stale: bool


@dataclass(frozen=True)
class Cache:
    """Where an answer came from.

    Attributes:
        status: "hit", "miss" or "joined".
        reason: Why it was a miss, e.g. "NEW_GRAPH"; empty for a hit.
        explanation: The same for people.
    """

    status: str
    reason: str
    explanation: str


def report_of(message: pb.CompileReport, *, performed_here: int) -> Report:
    """A report from the server's, with the recompiles that this process performed added."""
    return Report(
        recompiles=Recompiles(
            message.recompiles.requested, message.recompiles.performed + performed_here
        ),
        passes=tuple(
            PassReport(
                name=p.name,
                spelling=p.spelling,
                seconds=p.seconds,
                nodes_before=p.nodes_before,
                nodes_after=p.nodes_after,
                changed=p.changed,
                recompiles=Recompiles(p.recompiles.requested, p.recompiles.performed),
                note=p.note,
            )
            for p in message.passes
        ),
        seconds=message.seconds,
        pass_seconds=message.pass_seconds,
        queue_seconds=message.queue_seconds,
        saved_seconds=message.saved_seconds,
        nodes_before=message.nodes_before,
        nodes_after=message.nodes_after,
        pipeline=message.pipeline,
        stale=message.stale,
    )


def cache_of(message: pb.CacheResult) -> Cache:
    """Where an answer came from, in words."""
    status = pb.CacheStatus.Name(message.status).removeprefix("CACHE_STATUS_").lower()
    reason = ""
    if message.miss_reason:
        reason = pb.MissReason.Name(message.miss_reason).removeprefix("MISS_REASON_")
    return Cache(status=status, reason=reason, explanation=message.explanation)

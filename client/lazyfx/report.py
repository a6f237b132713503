"""Typed reports of compiles, built from the server's message on each access."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseError, SerializeToJsonError
from google.protobuf.struct_pb2 import Struct

from lazyfx.shared.printable import make_printable, printable
from lazyfx.v1 import compiler_pb2 as pb

# Maximum characters of one text in a report: a pipeline's spelling may be long.
_MAX_TEXT = 65_536

_BASES = {pb.ESTIMATE_BASIS_MEASURED: "measured", pb.ESTIMATE_BASIS_FITTED: "fitted"}


@dataclass(frozen=True)
class Recompiles:
    """Recompiles of Python code: requested, performed and saved."""

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
        note: A note for people.
        runs: Times that it ran; more than once inside until_stable.
        forced: What required generated code while it ran: "call at file.py:12 in function".
        data: The JSON-like result of an analysis; empty for other passes.
    """

    name: str
    spelling: str
    seconds: float
    nodes_before: int
    nodes_after: int
    changed: bool
    recompiles: Recompiles
    note: str
    runs: int = 1
    forced: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verified:
    """What `verify=True` compared.

    Attributes:
        passes: Passes that changed the graph and whose results were compared.
        tensors: Outputs, written tensors and gradients compared each time.
        max_difference: The largest difference, relative to the largest value.
    """

    passes: int
    tensors: int
    max_difference: float


@dataclass(frozen=True)
class ModuleReport:
    """The recompiles of one module of a compile.

    Attributes:
        path: Dotted path from the root: "" is the root, "*" the temporary modules that passes
            built.
        recompiles: Recompiles of this module alone, in the worker.
        nodes: Nodes of its graph.
        stale: Whether its generated code is stale.
    """

    path: str
    recompiles: Recompiles
    nodes: int
    stale: bool


@dataclass(frozen=True)
class Report:
    """What a compile did; on a hit, what the cached compile did.

    Attributes:
        recompiles: Recompiles of the module, including those that later fetches caused.
        passes: In the order in which they ran.
        seconds: Wall seconds in the worker: decode, passes, encode.
        pass_seconds: Seconds of that inside passes.
        queue_seconds: Seconds that the job waited for a worker.
        saved_seconds: Estimated seconds of code generation that laziness saved.
        nodes_before: Nodes of the graph that was sent.
        nodes_after: Nodes of the resulting graph.
        pipeline: The pipeline's canonical spelling.
        stale: Whether no code has been generated for the graph yet.
        modules: All modules, the root first.
        performed_seconds: Measured seconds of the performed recompiles.
        saved_basis: Where `saved_seconds` comes from: "measured" on this graph or "fitted".
        eager: Whether the passes ran on eager modules.
        verified: What `verify=True` compared, or None.
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
    modules: tuple[ModuleReport, ...] = ()
    performed_seconds: float = 0.0
    saved_basis: str = ""
    eager: bool = False
    verified: Verified | None = None


@dataclass(frozen=True)
class Cache:
    """Where an answer came from.

    Attributes:
        status: "hit", "miss" or "joined".
        reason: Why it was a miss, e.g. "NEW_GRAPH"; empty for a hit.
        explanation: An explanation for people.
    """

    status: str
    reason: str
    explanation: str


def report_of(message: pb.CompileReport, *, performed_here: int) -> Report:
    """A report from the server's message, plus the recompiles that this process performed."""
    own = pb.CompileReport()
    own.CopyFrom(message)
    make_printable(own, _MAX_TEXT)
    message = own
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
                runs=p.runs,
                forced=tuple(f"{each.trigger} at {each.where}" for each in p.forced),
                data=_data(p.data),
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
        modules=tuple(
            ModuleReport(
                m.path,
                Recompiles(m.recompiles.requested, m.recompiles.performed),
                m.nodes,
                m.stale,
            )
            for m in message.modules
        ),
        performed_seconds=message.performed_seconds,
        saved_basis=_BASES.get(message.saved_basis, ""),
        eager=message.eager,
        verified=_verified(message),
    )


def _data(found: Struct) -> Mapping[str, Any]:
    """The result of an analysis; empty if it is not valid JSON, e.g. contains NaN."""
    try:
        return MessageToDict(found)
    except (SerializeToJsonError, ParseError, ValueError, RecursionError):
        return {}


def _verified(message: pb.CompileReport) -> Verified | None:
    if not message.HasField("verified"):
        return None
    found = message.verified
    return Verified(found.passes, found.tensors, found.max_difference)


def cache_of(message: pb.CacheResult) -> Cache:
    """The cache status of an answer."""
    reason = (
        enum_name(pb.MissReason, message.miss_reason, "MISS_REASON_") if message.miss_reason else ""
    )
    return Cache(
        status=enum_name(pb.CacheStatus, message.status, "CACHE_STATUS_").lower(),
        reason=reason,
        explanation=printable(message.explanation),
    )


@lru_cache(maxsize=64)
def enum_name(enum: Any, number: int, prefix: str) -> str:
    """The name of an enum value; "UNKNOWN" for a value of a newer server."""
    found = enum.DESCRIPTOR.values_by_number.get(number)
    return "UNKNOWN" if found is None else str(found.name).removeprefix(prefix)

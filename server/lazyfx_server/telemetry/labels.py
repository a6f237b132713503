"""The values of metric labels. Anything else is counted as "other".

Those of events are listed by the types of the events' fields. Those that packages define which
telemetry does not import come from where the server is put together, as `DefinedElsewhere`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, get_args

from lazyfx_server.telemetry import events

OTHER: Final = "other"
CODES: Final = (
    "OK",
    "CANCELLED",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "UNAVAILABLE",
    "UNAUTHENTICATED",
)
JOBS: Final = ("compile", "render", "native", "check")
SOURCE_JOBS: Final = ("compile", "render", "native", "build")
OVERHEAD_STAGES: Final = ("codec", "key", "queue")
LOOKUP_RESULTS: Final[Sequence[str]] = get_args(events.LookupResult)
ARTIFACT_SOURCES: Final[Sequence[str]] = get_args(events.ArtifactSource)
NATIVE_RESULTS: Final[Sequence[str]] = get_args(events.NativeResult)
POOLS: Final[Sequence[events.PoolName]] = get_args(events.PoolName)
REFUSAL_REASONS: Final[Sequence[str]] = get_args(events.RefusalReason)
STAGES: Final[Sequence[str]] = get_args(events.Stage)
ABANDONMENTS: Final[Sequence[str]] = get_args(events.Abandonment)
FLEET_OUTCOMES: Final[Sequence[str]] = get_args(events.FleetOutcome)
UPSTREAM_QUESTIONS: Final[Sequence[str]] = get_args(events.UpstreamQuestion)
UPSTREAM_OUTCOMES: Final[Sequence[str]] = get_args(events.UpstreamOutcome)


@dataclass(frozen=True)
class DefinedElsewhere:
    """The values of labels that other packages define.

    Attributes:
        passes: The names of the passes of this server.
        artifact_kinds: Its kinds of artifacts.
        methods: The methods of the service.
        priorities: The priorities of requests.
        miss_reasons: Why a lookup may miss.
        triggers: What may need generated code.
        sandbox_layers: The layers of a worker's sandbox.
        restart_reasons: Why workers are replaced.
        tiers: The tiers of a store.
        remote_tiers: Those of them that are on other machines.
        store_operations: What a store is asked for.
    """

    passes: Sequence[str]
    artifact_kinds: Sequence[str]
    methods: Sequence[str]
    priorities: Sequence[str]
    miss_reasons: Sequence[str]
    triggers: Sequence[str]
    sandbox_layers: Sequence[str]
    restart_reasons: Sequence[str]
    tiers: Sequence[str]
    remote_tiers: Sequence[str]
    store_operations: Sequence[str]

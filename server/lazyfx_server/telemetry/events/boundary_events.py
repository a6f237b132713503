"""What happened where the server meets others: calls, its store, and the upstream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

UpstreamQuestion: TypeAlias = Literal["compile", "artifact"]
UpstreamOutcome: TypeAlias = Literal[
    "answered",
    "refused",
    "left",
    "values",
    "unreachable",
    "denied",
    "incompatible",
    "failed",
    "invalid",
]
"""How asking the upstream ended: it answered; it refused, and the caller is told; the caller left;
it lacks values, for which the caller is asked; or it could not serve, for this reason, and the work
is done here."""


@dataclass(frozen=True, slots=True)
class RequestHandled:
    """An RPC ended.

    Attributes:
        method: Its name without the service: "Compile".
        code: Name of the gRPC status code, e.g. "OK".
        seconds: Its duration; several if events were merged.
    """

    method: str
    code: str
    seconds: tuple[float, ...]


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
class UpstreamAsked:
    """The upstream server was asked for something.

    Attributes:
        what: What it was asked for.
        outcome: How that ended.
    """

    what: UpstreamQuestion
    outcome: UpstreamOutcome


@dataclass(frozen=True, slots=True)
class UpstreamTransferred:
    """Bytes of messages went to the upstream server, or came from it.

    Attributes:
        sent: Bytes that were sent.
        received: Bytes that were received.
    """

    sent: int
    received: int

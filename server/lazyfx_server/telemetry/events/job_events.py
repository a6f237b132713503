"""What became of the jobs of workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

PoolName: TypeAlias = Literal["pass", "native"]
RefusalReason: TypeAlias = Literal["queue", "deadline", "memory"]
"""Too much was waiting; the job would not have ended in time; the server's memory was nearly used
up."""


@dataclass(frozen=True, slots=True)
class JobStarted:
    """A job got a worker.

    Attributes:
        pool: "pass" or "native".
        priority: "interactive", "batch" or "prewarm".
        waited: Seconds that it waited.
    """

    pool: PoolName
    priority: str
    waited: float


@dataclass(frozen=True, slots=True)
class WorkRefused:
    """A job was refused before it began.

    Attributes:
        pool: "pass" or "native".
        reason: Why.
    """

    pool: PoolName
    reason: RefusalReason


@dataclass(frozen=True, slots=True)
class SourceRefused:
    """Generated source did not match its graph and was not served.

    Attributes:
        job: "compile" or "render".
    """

    job: str


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
class WorkerRestarted:
    """A worker process was replaced.

    Attributes:
        reason: "crash", "timeout", "recycled" or "cancelled".
    """

    reason: str

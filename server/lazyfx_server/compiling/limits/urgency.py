"""How soon the callers of a job need it: its priority, and when they stop waiting."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.errors import InvalidRequestError

# The numbers are in the order of urgency.
_RANKS: Final[Mapping[int, int]] = {
    number: number or pb.PRIORITY_INTERACTIVE for number in pb.Priority.values()
}
RANK_NAMES: Final[Mapping[int, str]] = {
    number: name.removeprefix("PRIORITY_").lower() for name, number in pb.Priority.items() if number
}
"""Names of priorities by rank; a lower rank goes first."""


def rank_of(priority: int) -> int:
    """The rank of a request's field `priority`.

    Raises:
        InvalidRequestError: It has no name.
    """
    rank = _RANKS.get(priority)
    if rank is None:
        raise InvalidRequestError.of_field(
            "priority", f"{priority} is unknown; use a value of the enum Priority, or none"
        )
    return rank


@dataclass(frozen=True, slots=True)
class Urgency:
    """How soon one caller needs its answer.

    Attributes:
        rank: Its priority, a key of `RANK_NAMES`.
        deadline: When it stops waiting, by `time.monotonic`; infinity if it has no deadline.
    """

    rank: int = 1
    deadline: float = math.inf

    @classmethod
    def of(cls, priority: int, time_left: Callable[[], float | None]) -> Urgency:
        """The urgency of a request.

        Args:
            priority: Its field `priority`.
            time_left: Returns the seconds until the deadline of its call; None without one.

        Raises:
            InvalidRequestError: The priority has no name.
        """
        left = time_left()
        return cls(rank_of(priority), math.inf if left is None else time.monotonic() + left)


class JointUrgency:
    """The urgency of work for which several callers wait: that of the most urgent of them.

    Its deadline is the latest one, because the work is useful until then.

    Args:
        first: The urgency of the first caller.
    """

    def __init__(self, first: Urgency | None = None) -> None:
        first = first or Urgency()
        self.rank = first.rank
        self.deadline = first.deadline
        self._on_raised: Callable[[], None] | None = None

    def add(self, urgency: Urgency) -> None:
        """Add the urgency of another caller."""
        self.deadline = max(self.deadline, urgency.deadline)
        if urgency.rank < self.rank:
            self.rank = urgency.rank
            if self._on_raised is not None:
                self._on_raised()

    def watch(self, on_raised: Callable[[], None] | None) -> None:
        """Call a function whenever the rank changes from now on; None ends that."""
        self._on_raised = on_raised

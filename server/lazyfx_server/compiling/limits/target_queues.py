"""A queue for each target of native artifacts, as each has workers of its own."""

from __future__ import annotations

from collections.abc import Callable

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.limits.admission import Admission


class TargetQueues:
    """The queues of native jobs: jobs that wait for one kind of worker delay no other kind.

    Each queue has all the room that the settings give to one. There are as many as kinds of
    workers, which the operator decides; callers cannot add any.

    Args:
        make: Makes a queue with a number of slots.
        slots: Returns how many jobs for a target can run at a time; 0 if its workers have left.
    """

    def __init__(
        self, make: Callable[[int], Admission], slots: Callable[[pb.NativeTarget], int]
    ) -> None:
        self._make = make
        self._slots = slots
        self._queues: dict[bytes, tuple[pb.NativeTarget, Admission]] = {}

    def of(self, target: pb.NativeTarget) -> Admission:
        """The queue of a target, which is one that workers have registered."""
        name = target.SerializeToString(deterministic=True)
        if name not in self._queues:
            self._queues[name] = target, self._make(self._usable(target))
        return self._queues[name][1]

    def resize(self) -> None:
        """Give each queue as many slots as there are now."""
        for target, queue in list(self._queues.values()):
            queue.resize(self._usable(target))

    @property
    def backlog_seconds(self) -> float:
        """Estimated seconds in which the slowest queue would be finished."""
        queues = list(self._queues.values())  # metrics call this in another thread
        return max((queue.backlog_seconds for _, queue in queues), default=0.0)

    def _usable(self, target: pb.NativeTarget) -> int:
        # Without a worker a job must still start, to be told that there is none.
        return max(1, self._slots(target))

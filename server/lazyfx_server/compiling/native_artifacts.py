"""Native artifacts: identifies them, checks whether they can be built, and compiles them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias

from lazyfx.shared.native.machine import mismatch
from lazyfx.shared.native.named_values import NamedValueError
from lazyfx.shared.native.native_request import check_request, conditions_digest
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.dispatch.crashes import Subject
from lazyfx_server.compiling.dispatch.native_builders import NativeBuilders
from lazyfx_server.compiling.flights.single_flight import STOP_SECONDS, Flight
from lazyfx_server.compiling.limits.admission import Admission, QueuedJob
from lazyfx_server.compiling.limits.target_queues import TargetQueues
from lazyfx_server.errors import (
    FailedPreconditionError,
    InvalidRequestError,
    RequestError,
)
from lazyfx_server.telemetry import NativeCompiled, NativeResult, Observer
from lazyfx_server.v1 import worker_pb2 as worker

KernelSharing: TypeAlias = Literal["all", "tenant", "none"]
"""Who shares compiled kernels: all tenants, the jobs of one, or nobody."""

_log = logging.getLogger(__name__)

# A compile that has run for less than this is not worth finishing without a waiting caller.
_WORTH_KEEPING_SECONDS = 5.0
# How many targets an error names.
_MAX_NAMED = 4


class NativeCompiles:
    """Runs native compiles in separate workers.

    Args:
        builders: Build them; None if native artifacts cannot be built or are turned off.
        make_queue: Makes the queue of one target, with a number of slots.
        observer: Notified of each compile.
        required: Whether the server must not start without native artifacts.
        forwards: Whether there is an upstream that may build what this server cannot.
        sharing: Who shares compiled kernels.

    Attributes:
        problem: Why none can be built here; empty if they can.
    """

    def __init__(
        self,
        builders: NativeBuilders | None,
        make_queue: Callable[[int], Admission],
        observer: Observer,
        *,
        required: bool = False,
        forwards: bool = False,
        sharing: KernelSharing = "all",
    ) -> None:
        self._builders = builders
        self._observer = observer

        def slots(target: pb.NativeTarget) -> int:
            return 0 if builders is None else builders.slots_for(target)

        self._queues = TargetQueues(make_queue, slots)
        self._required = required
        self._forwards = forwards
        self._sharing = sharing
        self.problem = ""

    @property
    def targets(self) -> Sequence[pb.NativeTarget]:
        """Where artifacts run; empty before it is known, and if none are built."""
        return () if self._builders is None or self.problem else self._builders.targets

    @property
    def layers(self) -> Sequence[str]:
        """Active layers of the workers' sandbox; empty without workers."""
        return () if self._builders is None else self._builders.sandbox.layers

    @property
    def backlog_seconds(self) -> float:
        """Estimated seconds in which the workers would finish what they have."""
        return self._queues.backlog_seconds

    def count_workers(self) -> None:
        """Let as many jobs run as workers can; call it when that changes."""
        self._queues.resize()

    @property
    def status(self) -> pb.NativeStatus:
        """How native compiles are confined, or why they are unavailable."""
        if self._builders is None or not self.targets:
            return pb.NativeStatus(unavailable=self._unavailable)
        sharing = self._sharing if self._builders.shares_kernels else "none"
        return pb.NativeStatus(sandbox=self._builders.sandbox, kernel_sharing=sharing)

    @property
    def _unavailable(self) -> str:
        if self.problem or self._builders is None:
            return self.problem or "this server builds no native artifacts; start it with --native"
        return f"this server cannot build native artifacts now: {self._builders.why_none}"

    async def start(self) -> None:
        """Start the workers, and determine the targets of their artifacts, which takes seconds.

        Raises:
            OSError: They are required but cannot be built.
        """
        if self._builders is None:
            return
        try:
            await self._builders.start()
        except RequestError as error:
            self.disable(str(error))
            if self._required:
                raise OSError(f"--native: {error}") from error

    def disable(self, reason: str) -> None:
        """Turn native artifacts off from now on."""
        self.problem = f"this server cannot build native artifacts: {reason}"
        _log.warning("%s", self.problem)

    async def close(self) -> None:
        """Stop the workers, and remove their files."""
        if self._builders is not None:
            await self._builders.close()

    def variant(self, request: pb.GetArtifactRequest) -> bytes:
        """A digest that distinguishes native artifacts of one module, 32 bytes.

        All machines that can run this server's artifacts share one, whatever their other features.
        With an upstream, which may be another machine, each kind of machine has its own.

        Raises:
            InvalidRequestError: The request does not say where the artifact will run, or has an
                invalid setting or state.
            FailedPreconditionError: This server's artifacts do not run there; says why.
        """
        if not request.HasField("native"):
            raise InvalidRequestError.of_field(
                "native", "is missing; specify where the artifact will run and with which settings"
            )
        target = request.native.target if self._forwards else self._target_for(request)
        try:
            check_request(request.native)
        except NamedValueError as error:
            raise InvalidRequestError.of_field(error.field, error.reason) from error
        digest = hashlib.sha256(target.SerializeToString(deterministic=True))
        digest.update(conditions_digest(request.native))
        return digest.digest()

    def require_buildable(self, request: pb.GetArtifactRequest) -> None:
        """Check that this server itself can build an artifact that runs where it is requested.

        Raises:
            FailedPreconditionError: It cannot; says why.
        """
        self._target_for(request)

    def _target_for(self, request: pb.GetArtifactRequest) -> pb.NativeTarget:
        """The target whose artifacts run where the caller is.

        Raises:
            FailedPreconditionError: There is none; says what there is.
        """
        targets, wanted = self.targets, request.native.target
        if not targets:
            raise FailedPreconditionError(self._unavailable)
        reasons = []
        for target in targets:
            if not (why := mismatch(target, wanted)):
                made = pb.NativeTarget()
                made.CopyFrom(target)
                made.accelerator = wanted.accelerator
                return made
            reasons.append(why)
        if len(reasons) == 1:
            raise FailedPreconditionError(
                f"a native artifact of this server would not run there: {reasons[0]}"
            )
        named = "; ".join(
            f"{target.vector_isa or 'no vector instructions'}"
            f"{', ' + target.accelerator if target.accelerator else ''}: {why}"
            for target, why in zip(targets[:_MAX_NAMED], reasons, strict=False)
        )
        raise FailedPreconditionError(
            f"none of the {len(targets)} kinds of worker of this server builds native artifacts "
            f"that would run there ({named})"
        )

    async def make(
        self,
        place: bytes,
        graph: graph_pb2.CompiledGraph,
        request: pb.GetArtifactRequest,
        queued_job: QueuedJob,
        subject: Subject,
        flight: Flight[Any],
        charge: AbstractContextManager[None],
    ) -> worker.NativeResult:
        """Compile one artifact; see `require_buildable`.

        Args:
            place: The store key of the artifact.
            graph: The compiled graph.
            request: Checked by `variant`.
            queued_job: The job, for fair queueing.
            subject: The subject of the job.
            flight: Notified when the compile begins.
            charge: Charges the tenant for the time within it; the wait for a slot is not charged.

        Raises:
            RequestError: A subclass, depending on the worker's answer.
        """
        assert self._builders is not None, "refused by `variant`"
        target = self._target_for(request)
        jobs, queue = self._builders.jobs_for(target), self._queues.of(target)
        job = worker.NativeJob(
            kind=request.kind, graph=graph, request=request.native, place=place,
            kernel_scope=self._kernel_scope(subject),
        )  # fmt: skip
        ended: NativeResult = "failed"
        repeated = 0
        try:
            async with queue.slot(queued_job):
                started = time.monotonic()
                flight.mark_running(
                    lambda: _grace_period(queue.usual_seconds(queued_job.kind), started)
                )
                with charge:
                    result = await jobs.native(job, subject)
        except asyncio.CancelledError:
            ended = "stopped"
            raise
        else:
            ended = "only_traced" if result.only_traced else "made"
            repeated = result.repeated_blocks
            return result
        finally:
            if flight.begun or ended != "stopped":
                self._observer.observe(NativeCompiled(ended, repeated))

    def _kernel_scope(self, subject: Subject) -> bytes | None:
        """Whose kernels a job shares; None for none but its own."""
        if self._sharing == "all":
            return b""
        return (subject.tenant or None) if self._sharing == "tenant" else None

    def progress(self, place: bytes) -> pb.ArtifactProgress:
        """The progress of a native compile of this server."""
        if self._builders is None:
            return pb.ArtifactProgress(stage="waiting")
        return self._builders.progress(place)


def _grace_period(usual: float | None, started: float) -> float:
    """How long an abandoned compile continues: to its end, if it is nearly done.

    That is if it has run for some time, and for half of the usual duration.
    """
    spent = time.monotonic() - started
    if usual is not None and spent >= max(_WORTH_KEEPING_SECONDS, usual / 2):
        return math.inf
    return STOP_SECONDS

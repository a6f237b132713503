"""On a server: answers the nodes of a cluster that ask for kernels, or give some.

A node computes a key of the files of its own machine, so one node's kernels are used by others only
if their compilers, headers and CPUs are the same. Nodes are trusted with artifacts, and not more
with kernels; what they can store is bounded for each job, and belongs to the job's scope.
"""

from __future__ import annotations

import hashlib
from typing import Final

from google.protobuf.message import DecodeError

from lazyfx_server.compiling.kernels.kernel_flights import KernelFlights
from lazyfx_server.compiling.kernels.kernel_store import MAX_KEPT_BYTES
from lazyfx_server.execution import CallRefused, Executor, JobBytes, OnCall
from lazyfx_server.execution.executor import parts_of
from lazyfx_server.v1 import worker_pb2 as worker

_KEY_BYTES: Final = hashlib.sha256().digest_size
_MAX_CALLS: Final = 20_000
_MAX_GIVEN_BYTES: Final = 128 << 20
_MAX_SECONDS: Final = 86_400.0


class KernelAnswers:
    """Answers the calls of one job; see `OnCall`.

    Args:
        kernels: The kernels of this server.
        scope: Whose kernels the job uses and adds to.
    """

    def __init__(self, kernels: KernelFlights, scope: bytes) -> None:
        self._kernels = kernels
        self._scope = scope
        self._calls = 0
        self._given_bytes = 0

    async def __call__(self, question: bytes) -> bytes:
        """A serialized KernelRecord, for a serialized KernelCall.

        Raises:
            CallRefused: It is malformed, too large, or one too many.
        """
        self._calls += 1
        if self._calls > _MAX_CALLS:
            raise CallRefused(f"one job makes at most {_MAX_CALLS} calls for kernels")
        try:
            call = worker.KernelCall.FromString(question)
        except DecodeError as error:
            raise CallRefused("the call for a kernel cannot be parsed") from error
        if len(call.key) != _KEY_BYTES:
            raise CallRefused(f"the key of a kernel has {_KEY_BYTES} bytes")
        if not call.HasField("made"):
            known = await self._kernels.find(call.key, self._scope)
            return b"" if known is None else known.SerializeToString()
        size = len(call.made.output)
        self._given_bytes += size
        if not 0 < size <= MAX_KEPT_BYTES or self._given_bytes > _MAX_GIVEN_BYTES:
            raise CallRefused("the kernel is empty or too large, or the job has given too many")
        if not 0 <= call.made.seconds < _MAX_SECONDS:  # also refuses NaN
            raise CallRefused("a kernel's compile takes no seconds, or less than a day")
        await self._kernels.add(call.key, self._scope, call.made)
        return b""


class AnsweringExecutor:
    """Runs native jobs elsewhere, and answers what they ask of kernels; see `Executor`.

    Args:
        executor: Runs them.
        kernels: The kernels of this server.
    """

    def __init__(self, executor: Executor, kernels: KernelFlights) -> None:
        self._executor = executor
        self._kernels = kernels

    @property
    def workers(self) -> int:
        """See `Executor.workers`."""
        return self._executor.workers

    async def start(self) -> None:
        """See `Executor.start`."""
        await self._executor.start()

    async def run(
        self,
        job: JobBytes,
        *,
        timeout: float,
        owner: str | None = None,
        on_call: OnCall | None = None,
    ) -> bytes:
        """Runs one job; see `Executor.run`. Its calls are answered here, so `on_call` is unused."""
        del on_call
        message = worker.Job.FromString(b"".join(parts_of(job)))
        answers = None
        if message.native.HasField("kernel_scope"):
            answers = KernelAnswers(self._kernels, message.native.kernel_scope)
        return await self._executor.run(job, timeout=timeout, owner=owner, on_call=answers)

    async def close(self) -> None:
        """See `Executor.close`."""
        await self._executor.close()

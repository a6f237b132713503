"""On a node of a cluster: asks the server of a job for kernels of its store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from google.protobuf.message import DecodeError

from lazyfx_server.compiling.kernels.kernel_store import MAX_KEPT_BYTES
from lazyfx_server.execution import CallRefused, OnCall
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)

# A compile takes one to two seconds. Beyond this, the kernel counts as unknown.
_SECONDS: Final = 3.0


@asynccontextmanager
async def server_kernels(call: OnCall | None) -> AsyncIterator[ServerKernels | None]:
    """The kernels of a job's server within the block, which then waits for what was given.

    Args:
        call: Calls the server; None if the job is not sent by one.
    """
    if call is None:
        yield None
        return
    kernels = ServerKernels(call)
    try:
        yield kernels
        await kernels.arrived()
    finally:
        kernels.close()


class ServerKernels:
    """The kernels of a server, as a job on a node reaches them; see `Elsewhere`.

    A server that does not answer, or whose answer is useless, is not called again for this job. One
    that refuses a kernel may still have others.

    Args:
        call: Calls the server; see `kernel_answers`.
    """

    def __init__(self, call: OnCall) -> None:
        self._call = call
        self._usable = True
        self._giving: set[asyncio.Task[None]] = set()

    async def find(self, key: bytes) -> worker.KernelRecord | None:
        """See `Elsewhere.find`."""
        if not self._usable:
            return None
        try:
            answer = await self._ask(worker.KernelCall(key=key))
            record = worker.KernelRecord.FromString(answer)
        except (CallRefused, DecodeError, asyncio.TimeoutError) as error:
            self._give_up(error)
            return None
        return record if record.output else None

    def give(self, key: bytes, record: worker.KernelRecord) -> None:
        """See `Elsewhere.give`."""
        if self._usable and len(record.output) <= MAX_KEPT_BYTES:
            task = asyncio.ensure_future(self._give(worker.KernelCall(key=key, made=record)))
            self._giving.add(task)
            task.add_done_callback(self._giving.discard)

    async def arrived(self) -> None:
        """Wait until everything given has arrived, or until it is clear that it will not."""
        await asyncio.gather(*self._giving, return_exceptions=True)

    def close(self) -> None:
        """Stop giving, and give nothing any more."""
        self._usable = False
        for task in self._giving:
            task.cancel()

    async def _give(self, gift: worker.KernelCall) -> None:
        try:
            await self._ask(gift)
        except CallRefused as error:
            _log.debug("the server does not want a kernel: %s", error)
        except asyncio.TimeoutError as error:
            self._give_up(error)

    async def _ask(self, question: worker.KernelCall) -> bytes:
        return await asyncio.wait_for(self._call(question.SerializeToString()), _SECONDS)

    def _give_up(self, error: Exception) -> None:
        self._usable = False
        _log.debug("the server's kernels cannot be used: %s", error)

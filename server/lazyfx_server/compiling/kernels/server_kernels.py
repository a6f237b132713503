"""On a node of a cluster: asks the server of a job for kernels of its store."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from google.protobuf.message import DecodeError

from lazyfx_server.compiling.kernels.kernel_store import MAX_KEPT_BYTES
from lazyfx_server.execution import CallRefused, OnCall
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)

# A compile takes one to two seconds. Beyond this, the kernel counts as unknown.
_SECONDS: Final = 3.0


class ServerKernels:
    """The kernels of a server, as a job on a node reaches them; see `Elsewhere`.

    After a call that failed, the server is not called again for this job.

    Args:
        call: Calls the server; see `kernel_answers`.
    """

    def __init__(self, call: OnCall) -> None:
        self._call = call
        self._usable = True

    async def find(self, key: bytes) -> worker.KernelRecord | None:
        """See `Elsewhere.find`."""
        record = await self._ask(worker.KernelCall(key=key))
        return record if record is not None and record.output else None

    async def add(self, key: bytes, record: worker.KernelRecord) -> None:
        """See `Elsewhere.add`."""
        if len(record.output) <= MAX_KEPT_BYTES:
            await self._ask(worker.KernelCall(key=key, made=record))

    async def _ask(self, question: worker.KernelCall) -> worker.KernelRecord | None:
        if not self._usable:
            return None
        try:
            answer = await asyncio.wait_for(self._call(question.SerializeToString()), _SECONDS)
            return worker.KernelRecord.FromString(answer)
        except (CallRefused, DecodeError, asyncio.TimeoutError) as error:
            self._usable = False
            _log.debug("the server's kernels cannot be used: %s", error)
            return None

"""The devices that workers see, queried periodically, because their free memory changes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.errors import RequestError
from lazyfx_server.telemetry import DeviceMemory

_log = logging.getLogger("lazyfx_server")


class Devices:
    """The latest device report of the workers.

    Args:
        jobs: Queries a worker that sees them.

    Attributes:
        infos: The devices; empty before the first `refresh`.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self.infos: Sequence[pb.DeviceInfo] = ()

    async def refresh(self) -> None:
        """Query again; the last report is kept if no worker answers."""
        try:
            self.infos = tuple((await self._jobs.describe()).devices)
        except RequestError as error:
            _log.warning("cannot query the devices of the workers: %s", error)

    def memory(self) -> Iterable[DeviceMemory]:
        """Their memory, for gauges."""
        return [
            DeviceMemory(info.device, info.memory_total_bytes, info.memory_free_bytes)
            for info in self.infos
        ]

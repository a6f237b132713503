"""The warm start of one session: what the job asked for before, and what it asks for now."""

from __future__ import annotations

import sys
import threading
from typing import Final

from lazyfx.artifacts.kernel_files import has_kept_kernels
from lazyfx.artifacts.prefetched import PrefetchedArtifact
from lazyfx.backend.warm_start.job_identity import job_digests
from lazyfx.backend.warm_start.job_record import JobRecord
from lazyfx.backend.warm_start.receiving import Receiving
from lazyfx.blocking_client import Client
from lazyfx.shared.native.prefetch_keys import prefetch_key
from lazyfx.v1 import compiler_pb2 as pb

_MAX_BYTES: Final = 256 * 2**20
_SECONDS: Final = 120.0
# At the end of the process, for what the server has not been told.
_LAST_SECONDS: Final = 0.5


class WarmStart:
    """What a job asked for before arrives in a thread. Threads may share it.

    Args:
        client: The client of the session.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._receiving: Receiving | None = None
        self._record: JobRecord | None = None
        self._has_started = False

    def start(self) -> None:
        """Ask for it, once in a process; does nothing if this process runs no script."""
        with self._lock:
            if self._has_started:
                return
            self._has_started = True
            jobs = job_digests()
            if not jobs:
                return
            self._record = JobRecord(jobs, self._client.remember_job)
            request = pb.PrefetchRequest(
                jobs=jobs, without_libraries=has_kept_kernels(), max_bytes=_MAX_BYTES
            )
            receiving = Receiving(
                lambda receiver: self._client.prefetch(request, receiver, _SECONDS)
            )
            try:
                receiving.start()
            except RuntimeError:  # no more threads
                return
            self._receiving = receiving

    def take_server(self) -> pb.GetServerInfoResponse | None:
        """What the server said of itself, once; None if it has sent nothing."""
        return None if self._receiving is None else self._receiving.take_server()

    def take(self, asked: pb.CompileRequest, native: pb.NativeRequest) -> PrefetchedArtifact | None:
        """An artifact that arrived before it was asked for.

        Args:
            asked: What its compile would ask for.
            native: Its conditions.
        """
        if self._receiving is None:
            return None
        return self._receiving.take(prefetch_key(asked, native))

    def add(self, asked: pb.CompileRequest, native: pb.NativeRequest, *, is_new: bool) -> None:
        """Take note of an artifact that this job runs.

        Args:
            asked: What its compile asked for.
            native: Its conditions.
            is_new: It was not used as it arrived.
        """
        if self._record is not None:
            self._record.add(prefetch_key(asked, native), asked, native, is_new=is_new)

    def close(self, *, at_exit: bool = False) -> None:
        """Stop, and tell the server what it has not been told.

        Args:
            at_exit: The process ends.
        """
        planned: frozenset[bytes] = frozenset()
        if self._receiving is not None:
            self._receiving.stop()
            planned = self._receiving.planned_keys
        if self._record is not None:
            # Python sets it when an error ends the program.
            has_failed = getattr(sys, "last_value", None) is not None
            self._record.close(_LAST_SECONDS, planned=planned, has_ended=at_exit and not has_failed)

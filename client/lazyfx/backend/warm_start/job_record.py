"""Tells a server what this job has asked for, so that it can send that when the job runs again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Final

from lazyfx.shared.native.prefetch_keys import AskedArtifacts
from lazyfx.v1 import compiler_pb2 as pb

# Graphs that are compiled within this time are told of together.
_PAUSE_SECONDS: Final = 0.2
_SEND_SECONDS: Final = 10.0


class JobRecord:
    """What this job has asked for in this run. Threads may share it.

    Nothing is sent as long as all of it was sent by the server before it was asked for. While the
    job runs, the server keeps what it remembers besides: a job that fails early has not asked for
    all that it will ask for when it is corrected.

    Args:
        jobs: From `job_digests`.
        send: Tells the server, within some seconds.
    """

    def __init__(
        self, jobs: Sequence[bytes], send: Callable[[pb.RememberJobRequest, float], None]
    ) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._closing = threading.Event()
        self._jobs = list(jobs)
        self._asked = AskedArtifacts()
        self._has_news = False
        self._had_news = False
        self._thread: threading.Thread | None = None

    def add(
        self, key: bytes, asked: pb.CompileRequest, native: pb.NativeRequest, *, is_new: bool
    ) -> None:
        """Take note of an artifact that this job runs.

        Args:
            key: From `prefetch_key`.
            asked: The compile.
            native: The conditions.
            is_new: The server did not send it by itself.
        """
        with self._lock:
            if not self._asked.add(key, asked, native):
                return
            self._has_news |= is_new
            self._had_news |= is_new
            if not self._has_news or self._thread is not None or self._closing.is_set():
                return
            self._thread = threading.Thread(target=self._run, name="lazyfx-job", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no more threads: the end of the process tells the server
                self._thread = None

    def close(
        self, seconds: float, *, planned: frozenset[bytes] = frozenset(), has_ended: bool = False
    ) -> None:
        """Tell the server what it has not been told, if it answers within this time.

        Args:
            seconds: The time.
            planned: Keys of what the server sent or would have sent.
            has_ended: The job has ended without an error, so what it has not asked for is no
                longer needed.
        """
        self._closing.set()
        with self._lock:
            if has_ended and self._had_news and not planned <= self._asked.keys:
                self._has_news = True
        if self._has_news and self._sending.acquire(timeout=seconds):
            try:
                self._tell(seconds, has_ended=has_ended)
            finally:
                self._sending.release()

    def _run(self) -> None:
        while True:
            self._closing.wait(_PAUSE_SECONDS)
            with self._sending:
                self._tell(_SEND_SECONDS)
            with self._lock:
                if not self._has_news or self._closing.is_set():
                    self._thread = None
                    return

    def _tell(self, seconds: float, *, has_ended: bool = False) -> None:
        with self._lock:
            if not self._has_news:
                return
            self._has_news = False
            record = pb.RememberJobRequest(jobs=self._jobs, has_ended=has_ended)
            record.MergeFrom(self._asked.record)
        # If there is no server, or an earlier one, the next run asks for everything as usual.
        with contextlib.suppress(Exception):
            self._send(record, seconds)

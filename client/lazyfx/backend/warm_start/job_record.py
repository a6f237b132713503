"""Tells a server what this job has asked for, so that it can send that when the job runs again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Final

from lazyfx.shared.native.prefetch_keys import (
    MAX_ARTIFACTS,
    MAX_COMPILE_BYTES,
    MAX_JOB_BYTES,
    MAX_NATIVES,
)
from lazyfx.v1 import compiler_pb2 as pb

# Graphs that are compiled within this time are told of together.
_PAUSE_SECONDS: Final = 0.2
_SEND_SECONDS: Final = 10.0
# Tags and lengths of an entry.
_OVERHEAD: Final = 64


class JobRecord:
    """What this job has asked for in this run. Threads may share it.

    Nothing is sent as long as all of it was sent by the server before it was asked for.

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
        self._record = pb.RememberJobRequest(jobs=jobs)
        self._keys: set[bytes] = set()
        self._natives: dict[bytes, int] = {}
        self._has_news = False
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
            if key in self._keys or not self._fits(asked, native):
                return
            self._keys.add(key)
            index = self._index(native)
            self._record.artifacts.add(compile=asked, native=index)
            self._has_news |= is_new
            if not self._has_news or self._thread is not None or self._closing.is_set():
                return
            self._thread = threading.Thread(target=self._run, name="lazyfx-job", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no more threads: the end of the process tells the server
                self._thread = None

    def close(self, seconds: float) -> None:
        """Tell the server what it has not been told, if it answers within this time."""
        self._closing.set()
        if self._has_news and self._sending.acquire(timeout=seconds):
            try:
                self._tell(seconds)
            finally:
                self._sending.release()

    def _fits(self, asked: pb.CompileRequest, native: pb.NativeRequest) -> bool:
        record, whole = self._record, asked.ByteSize() + native.ByteSize()
        return (
            asked.ByteSize() <= MAX_COMPILE_BYTES
            and len(record.artifacts) < MAX_ARTIFACTS
            and (len(record.natives) < MAX_NATIVES or _name(native) in self._natives)
            and record.ByteSize() + whole + _OVERHEAD <= MAX_JOB_BYTES
        )

    def _index(self, native: pb.NativeRequest) -> int:
        name = _name(native)
        if name not in self._natives:
            self._natives[name] = len(self._record.natives)
            self._record.natives.append(native)
        return self._natives[name]

    def _run(self) -> None:
        while True:
            self._closing.wait(_PAUSE_SECONDS)
            with self._sending:
                self._tell(_SEND_SECONDS)
            with self._lock:
                if not self._has_news or self._closing.is_set():
                    self._thread = None
                    return

    def _tell(self, seconds: float) -> None:
        with self._lock:
            if not self._has_news:
                return
            self._has_news = False
            record = pb.RememberJobRequest()
            record.CopyFrom(self._record)
        # If there is no server, or an earlier one, the next run asks for everything as usual.
        with contextlib.suppress(Exception):
            self._send(record, seconds)


def _name(native: pb.NativeRequest) -> bytes:
    return native.SerializeToString(deterministic=True)

"""The worker's side of the connection: jobs come in, results and calls go out.

Any thread that waits for a frame reads the connection for all threads, so no separate reader thread
is needed: a confined worker creates no threads.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from lazyfx_server.execution.frames import CALL_NUMBER, Kind, receive, send
from lazyfx_server.execution.job_calls import CallFailed

_T = TypeVar("_T")


class Channel:
    """The connection, shared by the threads of a worker.

    Args:
        connection: The worker's end of the socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._reading = False
        self._ended = False
        self._jobs: deque[bytes] = deque()
        self._answers: dict[int, tuple[int, bytes]] = {}
        self._numbers = itertools.count(1)

    def send(self, kind: Kind, body: bytes = b"") -> None:
        """Send one frame.

        Raises:
            OSError: The server is gone.
        """
        with self._sending:
            send(self._connection, kind, body)

    def next_job(self) -> bytes | None:
        """The next job; None when the server has closed the connection."""
        return self._wait_for(lambda: self._jobs.popleft() if self._jobs else None)

    def call(self, question: bytes) -> bytes:
        """Call the server; see `job_calls.call_server`."""
        number = next(self._numbers)
        try:
            self.send(Kind.CALL, CALL_NUMBER.pack(number) + question)
            answer = self._wait_for(lambda: self._answers.pop(number, None))
        except OSError as error:
            raise CallFailed("the server is gone") from error
        if answer is None:
            raise CallFailed("the server is gone")
        kind, body = answer
        if kind == Kind.CALL_FAILED:
            raise CallFailed(body.decode("utf-8", "replace"))
        return body

    def _wait_for(self, found: Callable[[], _T | None]) -> _T | None:
        with self._changed:
            while True:
                value = found()
                if value is not None or self._ended:
                    return value
                if self._reading:
                    self._changed.wait()
                else:
                    self._read_one()

    def _read_one(self) -> None:
        """Receive one frame and dispatch it; the caller holds the lock."""
        self._reading = True
        self._changed.release()
        frame = None
        try:
            frame = receive(self._connection)
        finally:
            self._changed.acquire()
            self._reading = False
            if frame is None:
                self._ended = True
            elif frame[0] == Kind.JOB:
                self._jobs.append(frame[1])
            else:
                (number,) = CALL_NUMBER.unpack_from(frame[1])
                self._answers[number] = (frame[0], frame[1][CALL_NUMBER.size :])
            self._changed.notify_all()

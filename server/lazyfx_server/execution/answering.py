"""The server's side of a worker's calls: bounded, answered concurrently, cancelled with the job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from lazyfx_server.execution.frames import CALL_NUMBER, MAX_MESSAGE_CHARACTERS, Kind
from lazyfx_server.execution.job_calls import CallRefused, OnCall

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CallBounds:
    """Bounds on the calls of one job.

    Attributes:
        calls: Calls of one job; its worker is killed when it makes more.
        bytes: Bytes of one request; the worker is killed when it sends more.
        at_once: Calls that are answered concurrently. While there are that many, nothing more is
            read from the worker.
    """

    calls: int = 10_000
    bytes: int = 64 << 20
    at_once: int = 64


class CallResponder:
    """Answers the calls of one worker.

    Args:
        bounds: Bounds on the calls of one job.
        write: Sends a frame to the worker.
        read_more: Called with whether to continue reading from the worker.
    """

    def __init__(
        self,
        bounds: CallBounds,
        write: Callable[[Kind, bytes], None],
        read_more: Callable[[bool], None],
    ) -> None:
        self.bounds = bounds
        self._write = write
        self._read_more = read_more
        self._on_call: OnCall | None = None
        self._left = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, on_call: OnCall | None) -> None:
        """A job begins."""
        self._on_call = on_call
        self._left = self.bounds.calls

    def end(self) -> None:
        """The job has ended; its pending calls are cancelled."""
        self._on_call = None
        self._left = 0
        for task in self._tasks:
            task.cancel()

    def take(self, body: bytes) -> bool:
        """Start answering a CALL frame; False if the worker exceeded its bounds."""
        if self._left <= 0 or len(body) < CALL_NUMBER.size:
            return False
        self._left -= 1
        task = asyncio.ensure_future(
            self._answer(body[: CALL_NUMBER.size], body[CALL_NUMBER.size :])
        )
        self._tasks.add(task)
        if len(self._tasks) == self.bounds.at_once:
            self._read_more(False)
        task.add_done_callback(self._done)
        return True

    def _done(self, task: asyncio.Task[None]) -> None:
        if len(self._tasks) == self.bounds.at_once:
            self._read_more(True)
        self._tasks.discard(task)

    async def _answer(self, number: bytes, question: bytes) -> None:
        on_call = self._on_call or _refuse
        try:
            answer = await on_call(question)
        except CallRefused as refusal:
            reason = str(refusal)[:MAX_MESSAGE_CHARACTERS]
            self._write(Kind.CALL_FAILED, number + reason.encode("utf-8", "replace"))
        except Exception:  # noqa: BLE001 - whatever it is, the job must hear of it
            _log.exception("cannot answer a call of a job")
            self._write(Kind.CALL_FAILED, number + b"the server could not answer this call")
        else:
            self._write(Kind.CALL_ANSWERED, number + answer)


async def _refuse(_question: bytes) -> bytes:
    raise CallRefused("this job may not call the server")

"""Calls that a running job makes to the server: a question in bytes, an answer in bytes.

A job may ask from any of its threads, and several may wait at a time. What a question means is
known to who runs the job (`OnCall`) and to the job; this package carries bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

OnCall = Callable[[bytes], Awaitable[bytes]]
"""Answers one call of a job, in the event loop. Raises CallRefused to have the job told why."""

CallServer = Callable[[bytes], bytes]
"""How a job reaches the server; blocks its thread."""


class CallRefused(Exception):  # noqa: N818 - reads as what happened
    """The server does not answer this call; the text is for the job."""


class CallFailed(Exception):  # noqa: N818 - reads as what happened
    """Raised in the job: its call was refused or could not be answered."""


_of_context: ContextVar[CallServer | None] = ContextVar("lazyfx_call_server", default=None)
_of_process: CallServer | None = None


def call_server(question: bytes) -> bytes:
    """Ask the server something, from within a job; waits for the answer.

    Raises:
        CallFailed: The call was refused or failed, or this is not a job that may call.
    """
    calling = _of_context.get() or _of_process
    if calling is None:
        raise CallFailed("no server listens to calls here")
    return calling(question)


def answer_calls_by(calling: CallServer | None) -> None:
    """From now on all threads of this process call this way."""
    global _of_process
    _of_process = calling


def calling_loop(on_call: OnCall | None, loop: asyncio.AbstractEventLoop) -> CallServer:
    """How a thread of the server's own process calls."""

    def calling(question: bytes) -> bytes:
        if on_call is None:
            raise CallFailed("this job may not call the server")

        async def answered() -> bytes:
            return await on_call(question)

        try:
            return asyncio.run_coroutine_threadsafe(answered(), loop).result()
        except CallRefused as refusal:
            raise CallFailed(str(refusal)) from refusal

    return calling


def with_calls(calling: CallServer, function: Callable[[bytes], bytes], job: bytes) -> bytes:
    """Run a job function whose thread calls this way; threads that it starts do not."""
    token = _of_context.set(calling)
    try:
        return function(job)
    finally:
        _of_context.reset(token)

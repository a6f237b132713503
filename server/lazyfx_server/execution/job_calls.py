"""Calls that a running job makes to the server: a question in bytes, an answer in bytes.

A job may ask from any of its threads, and several may wait at a time. What a question means is
known to who runs the job (`OnCall`) and to the job; this package carries bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

OnCall = Callable[[bytes], Awaitable[bytes]]
"""Answers one call of a job, in the event loop. Raises CallRefused to have the job told why."""

CallServer = Callable[[bytes], bytes]
"""How a job reaches the server; blocks its thread."""


class CallRefused(Exception):  # noqa: N818 - reads as what happened
    """The server does not answer this call; the text is for the job."""


class CallFailed(Exception):  # noqa: N818 - reads as what happened
    """Raised in the job: its call was refused or could not be answered."""


_of_process: CallServer | None = None


def call_server(question: bytes) -> bytes:
    """Ask the server something, from within a job; waits for the answer.

    Raises:
        CallFailed: The call was refused or failed, or this is not a job that may call.
    """
    if _of_process is None:
        raise CallFailed("no server listens to calls here")
    return _of_process(question)


def set_server_call(calling: CallServer) -> None:
    """From now on all threads of this process call this way."""
    global _of_process
    _of_process = calling

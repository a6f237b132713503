"""Calls from a running job to the server: a request in bytes, an answer in bytes.

A job may call from any of its threads, and several may wait at a time. Only the job and its runner
(`OnCall`) know what a request means; this package carries bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

OnCall = Callable[[bytes], Awaitable[bytes]]
"""Answers one call of a job, in the event loop. Raises CallRefused to give the job a reason."""

CallServer = Callable[[bytes], bytes]
"""Calls the server from within a job; blocks its thread."""


class CallRefused(Exception):  # noqa: N818 - reads as what happened
    """The server refuses this call; the text is sent to the job."""


class CallFailed(Exception):  # noqa: N818 - reads as what happened
    """Raised in the job: its call was refused or could not be answered."""


_of_process: CallServer | None = None


def call_server(question: bytes) -> bytes:
    """Call the server from within a job, and wait for the answer.

    Raises:
        CallFailed: The call was refused or failed, or this job may not call the server.
    """
    if _of_process is None:
        raise CallFailed("this process cannot call a server")
    return _of_process(question)


def set_server_call(calling: CallServer) -> None:
    """Set how all threads of this process call the server."""
    global _of_process
    _of_process = calling

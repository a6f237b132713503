"""Calls in progress on a blocking channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, cast

import grpc


class BlockingCall:
    """A call in progress, driven by the thread that waits for it.

    Args:
        call: The call.
        failures: Receives the exception that its requests end with, if any.
    """

    def __init__(self, call: Any, failures: list[Exception]) -> None:
        self._call = call
        self._failures = failures
        self._is_released = False

    def read(self) -> bytes | None:
        """The next response; None at the end."""
        try:
            return cast("bytes | None", next(self._call, None))
        except grpc.RpcError as error:
            if self._failures:  # gRPC ends a call whose requests end with an error
                raise self._failures.pop() from None
            raise CallFailure(error) from None
        except BaseException:  # Ctrl-C: gRPC has released the call
            self._is_released = True
            raise

    def finish(self) -> bytes | None:
        """The only response; None if there are none or several."""
        try:
            answer = self.read()
            return answer if self.read() is None else None
        finally:
            self.cancel()

    def interrupt(self) -> None:
        """Cancel the call from another thread than the one that waits for it."""
        self._call.cancel()

    def cancel(self) -> None:
        """Cancel the call unless it has ended, and release its resources."""
        self._call.cancel()
        is_released, self._is_released = self._is_released, True
        if is_released:
            return
        # gRPC keeps a single-threaded call until all its events have been read. Neither name is
        # public; a gRPC without them keeps 22 KiB of each abandoned call.
        read = getattr(self._call, "_consume_next_event", None)
        state = getattr(self._call, "_state", None)
        while read is not None and getattr(state, "due", None):
            read()


class CallFailure(grpc.RpcError):
    """The failure of a call. gRPC raises the call object itself, which references its waiters."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self._code, self._details = call.code(), call.details()
        self._trailing_metadata = call.trailing_metadata()
        call.__traceback__ = None

    def code(self) -> grpc.StatusCode:
        """The status code."""
        return cast("grpc.StatusCode", self._code)

    def details(self) -> str | None:
        """The message of the status."""
        return cast("str | None", self._details)

    def trailing_metadata(self) -> Any:
        """The trailing metadata."""
        return self._trailing_metadata


class RacedCall:
    """A call that a thread of gRPC completes, so that several can be waited for at a time.

    Args:
        call: The call, which is also a future.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self.cancel: Callable[[], object] = call.cancel
        self.interrupt = self.cancel

    def when_done(self, act: Callable[[], None]) -> None:
        """Act once the call has ended."""
        self._call.add_done_callback(lambda _: act())

    def finish(self) -> bytes | None:
        """The response."""
        try:
            return cast("bytes | None", self._call.result())
        except (grpc.RpcError, grpc.FutureCancelledError):  # the latter for the status CANCELLED
            raise CallFailure(self._call) from None


def first_done(calls: Sequence[RacedCall], seconds: float | None) -> int | None:
    """The index of the first call that has ended; None if none has after these seconds."""
    ended: SimpleQueue[int] = SimpleQueue()
    for i, call in enumerate(calls):
        call.when_done(partial(ended.put, i))
    with suppress(Empty):
        return ended.get(timeout=seconds)
    return None

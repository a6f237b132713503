"""Runs flows in the caller's thread, over a blocking channel.

Calls need no extra thread, except for uploads and streams of compiles, for which gRPC starts its
own.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import Any, Final, cast

import grpc

from lazyfx.calls import forking
from lazyfx.calls.channel import (
    CLOSED_MEANWHILE,
    CONNECTED_OR_FAILED,
    methods_of,
    open_blocking_channel,
)
from lazyfx.errors import ClosedError, LazyfxError
from lazyfx.flows import (
    AwaitConnection,
    Finish,
    Flow,
    Locked,
    Next,
    Offload,
    Open,
    Pause,
    Result,
    Send,
    Start,
    Step,
)
from lazyfx.trust.access import Access

# gRPC reports an established connection, but not a closed channel.
_LOOK_SECONDS: Final = 0.1


class BlockingDriver:
    """A channel to one server. Threads may share it.

    The channel is closed when the driver is garbage-collected.

    Args:
        address: "host:port".
        access: Credentials to send, and keys to trust.

    Raises:
        ForkedProcessError: This process was forked after a client had been opened in its parent.
        LazyfxError: A certificate cannot be read, or a token would be sent unencrypted.
    """

    def __init__(self, address: str, access: Access) -> None:
        forking.mark_grpc_used()
        self._metadata = access.metadata(address)
        self._channel = open_blocking_channel(address, access.tls)
        self._methods = methods_of(self._channel, streams=True)
        self._closing = threading.Event()
        self._close = weakref.finalize(self, self._channel.close)
        self._close.atexit = False  # the channel ends with the process
        forking.leak_in_children(self)

    def close(self) -> None:
        """Close the channel; flows waiting in other threads raise ClosedError.

        Raises:
            ForkedProcessError: It belongs to the process that this one was forked from.
        """
        forking.require_not_forked()
        self._closing.set()
        self._close()

    def require_open(self) -> None:
        """Raise an error if no call can be made from here.

        Raises:
            ClosedError: The channel was closed.
            ForkedProcessError: It belongs to the process that this one was forked from.
            LazyfxError: This thread sends the requests of a flow, and would wait for itself.
        """
        forking.require_not_forked()
        if self._closing.is_set():
            raise ClosedError
        if getattr(_sending, "is_on", False):
            raise LazyfxError(
                "the client cannot be called from its own callbacks (on_upload): the call would "
                "wait for itself"
            )

    def is_ready(self, seconds: float) -> bool:
        """Whether a connection to the server can be established within that many seconds."""
        return self._reaches((grpc.ChannelConnectivity.READY,), seconds)

    def _reaches(self, states: Collection[grpc.ChannelConnectivity], seconds: float) -> bool:
        self.require_open()
        end = time.monotonic() + seconds
        reached = threading.Event()

        def note(state: grpc.ChannelConnectivity) -> None:
            if state in states:
                reached.set()

        self._channel.subscribe(note, try_to_connect=True)
        try:
            while not reached.wait(max(0.0, min(end - time.monotonic(), _LOOK_SECONDS))):
                if time.monotonic() >= end:
                    return False
                self.require_open()
        finally:
            self._channel.unsubscribe(note)
        return True

    def run(self, flow: Flow[Result]) -> Result:
        """Run a flow to its end, in this thread.

        Raises:
            ClosedError: The channel was closed, before or meanwhile.
            ForkedProcessError: It belongs to the process that this one was forked from.
        """
        self.require_open()
        try:
            step = next(flow)
            while True:
                try:
                    reply = self._do(step)
                except BaseException as error:  # noqa: BLE001 - the flow decides, also on Ctrl-C
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _do(self, step: Step) -> Any:
        try:
            match step:
                case Start(method, request, seconds):
                    return self._open(method, request, seconds)
                case Finish(call):
                    return cast("_Call", call).finish()
                case Open(method, requests, seconds):
                    return self._open(method, requests, seconds)
                case Next(call):
                    return cast("_Call", call).read()
                case Send():
                    return self._send(step)
                case Pause(seconds):
                    self._closing.wait(seconds)
                case Offload(work):
                    return _in_thread(work)
                case AwaitConnection(seconds):
                    return self._reaches(CONNECTED_OR_FAILED, seconds)
                case Locked(lock, flow):
                    with cast("threading.Lock", lock):
                        return self.run(flow)
        except grpc.RpcError:
            if self._closing.is_set():
                raise ClosedError(CLOSED_MEANWHILE) from None
            raise

    def _begin(self, method: Any, requests: object, seconds: float) -> Any:
        self.require_open()
        try:
            call = method(requests, timeout=seconds, metadata=self._metadata)
        except ValueError:
            if self._closing.is_set():  # closed a moment ago
                raise ClosedError(CLOSED_MEANWHILE) from None
            raise
        forking.leak_in_children(call)
        return call

    def _open(self, method: str, requests: bytes | Iterator[bytes], seconds: float) -> _Call:
        failures: list[Exception] = []
        if not isinstance(requests, bytes):
            requests = _collect_failures(requests, failures)
        return _Call(self._begin(self._methods[method], requests, seconds), failures)

    def _send(self, step: Send) -> bytes | None:
        failures: list[Exception] = []
        requests = _collect_failures(step.requests, failures)
        call = self._begin(self._methods[step.method].future, requests, step.seconds)
        try:
            return cast("bytes | None", call.result())
        except grpc.RpcError as error:
            if failures:  # gRPC ends a call whose requests end with an error
                raise failures[0] from None
            raise _Failure(error) from None
        finally:
            call.cancel()


class _Call:
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
            raise _Failure(error) from None
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


class _Failure(grpc.RpcError):
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


_sending = threading.local()


def _collect_failures(requests: Iterator[bytes], failures: list[Exception]) -> Iterator[bytes]:
    """The requests, which gRPC consumes in its own thread; collects failures there."""
    _sending.is_on = True
    try:
        yield from requests
    except Exception as error:  # whatever the caller's graphs raise; the waiting thread does too
        failures.append(error)
        raise
    finally:
        _sending.is_on = False


def _in_thread(work: Callable[[], Any]) -> Any:
    future: Future[Any] = Future()
    args = (partial(copy_context().run, work), future)
    threading.Thread(target=_fulfil, args=args, name="lazyfx-work", daemon=True).start()
    try:
        return future.result()
    finally:
        del args, future  # otherwise the error would reference itself


def _fulfil(work: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - raised where it is waited for
        future.set_exception(error)
    finally:
        del future

"""Runs flows in the caller's thread, over a blocking channel.

Calls need no extra thread, except for uploads and streams of compiles, for which gRPC starts its
own.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import Any, Final, cast

import grpc

from lazyfx import flows
from lazyfx.calls import forking
from lazyfx.calls.blocking_calls import BlockingCall, CallFailure, RacedCall, first_done
from lazyfx.calls.channel import CLOSED_MEANWHILE, CONNECTED_OR_FAILED, open_blocking_channel
from lazyfx.calls.connections import Connections
from lazyfx.calls.watching import (
    CHECK_SECONDS,
    HEALTH_CHECK,
    ThreadWatch,
    is_silence,
)
from lazyfx.errors import ClosedError, LazyfxError
from lazyfx.flows import Flow, Place, Result, Step
from lazyfx.trust.access import Access

# The state of the connection is read again after the first, doubled up to the second.
_SHORTEST_LOOK_SECONDS: Final = 0.001
_LOOK_SECONDS: Final = 0.05


class BlockingDriver:
    """Channels to a server or its replicas. Threads may share it.

    The channels are closed when the driver is garbage-collected.

    Args:
        address: "host:port", or several joined by commas.
        access: Credentials to send, and keys to trust.

    Raises:
        ForkedProcessError: This process was forked after a client had been opened in its parent.
        LazyfxError: A certificate cannot be read, or a token would be sent unencrypted.
    """

    def __init__(self, address: str, access: Access) -> None:
        self._connections = Connections(address, access, open_blocking_channel, streams=True)
        self._closing = threading.Event()
        self._watch: ThreadWatch | None = None
        if self._connections.are_replicas:
            is_silent = partial(_is_silent, self._connections)
            self._watch = ThreadWatch(is_silent, self._closing)
        channels = self._connections.channels
        self._close = weakref.finalize(self, _close_all, channels, self._closing)
        self._close.atexit = False  # the channels end with the process
        forking.leak_in_children(self)

    def close(self) -> None:
        """Close the channels; flows waiting in other threads raise ClosedError.

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
        """Whether a connection to a server can be established within that many seconds."""
        states = (grpc.ChannelConnectivity.READY,)
        return self._reach(self._connections.channels, states, seconds)

    def _reach(
        self,
        channels: Sequence[grpc.Channel],
        states: Collection[grpc.ChannelConnectivity],
        seconds: float,
    ) -> bool:
        """Whether one of the channels is in one of the states within that many seconds."""
        # gRPC's own watch is a thread that prints a traceback when the channel is closed.
        untyped: Any = channels
        checks = [channel._channel.check_connectivity_state for channel in untyped]  # noqa: SLF001
        reached = {state.value[0] for state in states}
        end, pause = time.monotonic() + seconds, _SHORTEST_LOOK_SECONDS
        while True:
            self.require_open()
            try:
                # All of them are asked, so that all of them connect.
                if not reached.isdisjoint([check(True) for check in checks]):
                    return True
            except ValueError:
                self.require_open()  # closed a moment ago
                raise
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._closing.wait(min(pause, left))
            pause = min(2 * pause, _LOOK_SECONDS)

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
            return self._perform(step)
        except grpc.RpcError:
            if self._closing.is_set():
                raise ClosedError(CLOSED_MEANWHILE) from None
            raise

    def _perform(self, step: Step) -> Any:
        match step:
            case flows.Start(is_raced=True):
                return self._start_raced(step)
            case flows.Start(method, sent, seconds, place) | flows.Open(
                method, sent, seconds, place
            ):
                return self._open(method, sent, seconds, place)
            case flows.Finish(call, place):
                ended = cast("BlockingCall | RacedCall", call)
                return self._watched(ended, ended.finish, place)
            case flows.First(calls, seconds):
                return first_done(cast("Sequence[RacedCall]", calls), seconds)
            case flows.Next(call, place):
                stream = cast("BlockingCall", call)
                return self._watched(stream, stream.read, place)
            case flows.Send():
                return self._send(step)
            case flows.Pause(seconds):
                if seconds:  # a call is sent when it starts
                    self._closing.wait(seconds)
            case flows.Offload(work):
                return _in_thread(work)
            case flows.AwaitConnection():
                return self._await_connection(step)
            case flows.Locked(lock, flow):
                with cast("threading.Lock", lock):
                    return self.run(flow)
        return None

    def _watched(
        self, call: BlockingCall | RacedCall, wait: Callable[[], bytes | None], place: Place
    ) -> bytes | None:
        if self._watch is None:
            return wait()
        return self._watch.wait(call.interrupt, place, wait)

    def _await_connection(self, step: flows.AwaitConnection) -> bool:
        if step.must_answer:
            self.require_open()
            try:
                return _answers(self._connections, None, step.place, step.seconds)
            except (ValueError, grpc.FutureCancelledError):
                self.require_open()  # closed a moment ago
                raise
        channel = self._connections.channels[step.place.replica]
        return self._reach([channel], CONNECTED_OR_FAILED, step.seconds)

    def _begin(self, method: Any, requests: object, seconds: float, place: Place) -> Any:
        self.require_open()
        try:
            call = method(requests, timeout=seconds, metadata=self._connections.metadata(place))
        except ValueError:
            if self._closing.is_set():  # closed a moment ago
                raise ClosedError(CLOSED_MEANWHILE) from None
            raise
        forking.leak_in_children(call)
        return call

    def _open(
        self, method: str, requests: bytes | Iterator[bytes], seconds: float, place: Place
    ) -> BlockingCall:
        failures: list[Exception] = []
        if not isinstance(requests, bytes):
            requests = _collect_failures(requests, failures)
        start = self._connections.method(method, place)
        return BlockingCall(self._begin(start, requests, seconds, place), failures)

    def _start_raced(self, step: flows.Start) -> RacedCall:
        start = self._connections.unary_method(step.method, step.place).future
        return RacedCall(self._begin(start, step.request, step.seconds, step.place))

    def _send(self, step: flows.Send) -> bytes | None:
        failures: list[Exception] = []
        requests = _collect_failures(step.requests, failures)
        start = self._connections.method(step.method, step.place).future
        call = self._begin(start, requests, step.seconds, step.place)
        try:
            return cast("bytes | None", call.result())
        except (grpc.RpcError, grpc.FutureCancelledError):
            if failures:  # gRPC ends a call whose requests end with an error
                raise failures.pop() from None
            raise CallFailure(call) from None
        finally:
            call.cancel()


# Neither holds the driver, so that it can be garbage-collected.


def _is_silent(connections: Connections[grpc.Channel], place: Place) -> bool:
    if _answers(connections, None, place, CHECK_SECONDS):
        return False
    with connections.open_another(place) as channel:
        return not _answers(connections, channel, place, connections.second_check_seconds)


def _answers(
    connections: Connections[grpc.Channel],
    channel: grpc.Channel | None,
    place: Place,
    seconds: float,
) -> bool:
    """Whether a health check is answered, over a channel or the usual one."""
    check = connections.check(place) if channel is None else channel.unary_unary(HEALTH_CHECK)
    metadata = tuple(connections.metadata(place))
    # As a future, because a blocking call of a closed channel may wait for ever.
    call = check.future(b"", timeout=seconds, metadata=metadata)
    forking.leak_in_children(call)
    return not is_silence(call.exception())


def _close_all(channels: Sequence[grpc.Channel], closing: threading.Event) -> None:
    closing.set()
    for channel in channels:
        channel.close()


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

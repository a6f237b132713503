"""Runs flows in an event loop, over grpc.aio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import suppress
from typing import Any, cast

import grpc
import grpc.aio

from lazyfx.calls import forking
from lazyfx.calls.channel import (
    CLOSED_MEANWHILE,
    CONNECTED_OR_FAILED,
    methods_of,
    open_async_channel,
)
from lazyfx.errors import ClosedError
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


class AsyncDriver:
    """A channel to one server. Belongs to the event loop in which it was made.

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
        self._channel = open_async_channel(address, access.tls)
        self._methods = methods_of(self._channel)
        self._closing = asyncio.Event()
        forking.leak_in_children(self)

    async def close(self) -> None:
        """Close the channel; waiting flows raise ClosedError.

        Raises:
            ForkedProcessError: It belongs to the process that this one was forked from.
        """
        forking.require_not_forked()
        if not self._closing.is_set():
            self._closing.set()
            await self._channel.close()

    async def is_ready(self, seconds: float) -> bool:
        """Whether a connection to the server can be established within that many seconds."""
        return await self._reaches((grpc.ChannelConnectivity.READY,), seconds)

    async def _reaches(self, states: Collection[grpc.ChannelConnectivity], seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while True:
            self._require_open()
            state = self._channel.get_state(try_to_connect=True)
            if state in states:
                return True
            change = self._channel.wait_for_state_change(state)
            try:
                await asyncio.wait_for(change, max(0.0, end - loop.time()))
            except asyncio.TimeoutError:
                return False

    async def run(self, flow: Flow[Result]) -> Result:
        """Run a flow to its end.

        Raises:
            ClosedError: The channel was closed, before or meanwhile.
            ForkedProcessError: It belongs to the process that this one was forked from.
        """
        try:
            step = next(flow)
            while True:
                try:
                    reply = await self._do(step)
                except BaseException as error:  # noqa: BLE001 - the flow decides
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _do(self, step: Step) -> Any:
        try:
            return await self._perform(step)
        except grpc.RpcError:
            if self._closing.is_set():
                raise ClosedError(CLOSED_MEANWHILE) from None
            raise
        except asyncio.CancelledError:
            # The channel cancels its calls when it closes; their callers did not cancel anything.
            if self._closing.is_set() and not _is_being_cancelled():
                raise ClosedError(CLOSED_MEANWHILE) from None
            raise

    async def _perform(self, step: Step) -> Any:
        match step:
            case Start(method, request, seconds):
                return self._call(method, request, seconds)
            case Finish(call):
                return await cast("Awaitable[bytes | None]", call)
            case Open(method, requests, seconds):
                failures: list[Exception] = []
                paced = requests if isinstance(requests, bytes) else _paced(requests, failures)
                return _Stream(self._call(method, paced, seconds), failures)
            case Next(call):
                return await cast("_Stream", call).read()
            case Send():
                return await self._send(step)
            case Pause(seconds):
                return await self._pause(seconds)
            case Offload(work):
                return await asyncio.to_thread(work)
            case AwaitConnection(seconds):
                return await self._reaches(CONNECTED_OR_FAILED, seconds)
            case Locked(lock, flow):
                async with cast("asyncio.Lock", lock):
                    return await self.run(flow)

    def _call(self, method: str, requests: object, seconds: float) -> Any:
        self._require_open()
        call = self._methods[method](requests, timeout=seconds, metadata=self._metadata)
        forking.leak_in_children(call)
        return call

    async def _send(self, step: Send) -> bytes | None:
        failures: list[Exception] = []
        try:
            call = self._call(step.method, _paced(step.requests, failures), step.seconds)
            return cast("bytes | None", await call)
        except asyncio.CancelledError:
            if failures:  # gRPC cancels a call whose requests end with an error
                raise failures[0] from None
            raise

    async def _pause(self, seconds: float) -> None:
        if not seconds:
            await asyncio.sleep(0)
            return
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    def _require_open(self) -> None:
        forking.require_not_forked()
        if self._closing.is_set():
            raise ClosedError


class _Stream:
    """A call with a stream of responses.

    Args:
        call: The call.
        failures: Receives the exception that its requests end with, if any.
    """

    def __init__(self, call: Any, failures: list[Exception]) -> None:
        self._answers: AsyncIterator[bytes] = call.__aiter__()
        self._failures = failures
        self.cancel: Callable[[], object] = call.cancel

    async def read(self) -> bytes | None:
        try:
            return await anext(self._answers, None)
        except asyncio.CancelledError:
            if self._failures:  # gRPC cancels a call whose requests end with an error
                raise self._failures.pop() from None
            raise


async def _paced(requests: Iterator[bytes], failures: list[Exception]) -> AsyncIterator[bytes]:
    """The requests of a stream, one per loop iteration so that it is written; collects failures."""
    try:
        for request in requests:
            yield request
            await asyncio.sleep(0)
    except Exception as error:  # whatever the caller's graphs raise; the reader raises it again
        failures.append(error)
        raise


def _is_being_cancelled() -> bool:
    """Whether the current task is being cancelled; False on Python 3.10, which cannot tell."""
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is not None and cancelling() > 0

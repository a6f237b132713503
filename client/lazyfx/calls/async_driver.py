"""Runs flows in an event loop, over grpc.aio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import grpc
import grpc.aio

from lazyfx import flows
from lazyfx.calls import forking
from lazyfx.calls.channel import CLOSED_MEANWHILE, CONNECTED_OR_FAILED, open_async_channel
from lazyfx.calls.connections import Connections
from lazyfx.calls.watching import (
    CHECK_SECONDS,
    HEALTH_CHECK,
    TaskWatch,
    is_being_cancelled,
    is_silence,
)
from lazyfx.errors import ClosedError
from lazyfx.flows import Call, Flow, Place, Result, Step
from lazyfx.trust.access import Access


class AsyncDriver:
    """Channels to a server or its replicas. Belongs to the event loop in which it was made.

    Args:
        address: "host:port", or several joined by commas.
        access: Credentials to send, and keys to trust.

    Raises:
        ForkedProcessError: This process was forked after a client had been opened in its parent.
        LazyfxError: A certificate cannot be read, or a token would be sent unencrypted.
    """

    def __init__(self, address: str, access: Access) -> None:
        self._connections = Connections(address, access, open_async_channel)
        self._closing = asyncio.Event()
        self._watch = TaskWatch(self._is_silent) if self._connections.are_replicas else None
        forking.leak_in_children(self)

    async def close(self) -> None:
        """Close the channels; waiting flows raise ClosedError.

        Raises:
            ForkedProcessError: It belongs to the process that this one was forked from.
        """
        forking.require_not_forked()
        if not self._closing.is_set():
            self._closing.set()
            ends = [channel.close() for channel in self._connections.channels]
            if self._watch is not None:
                ends.append(self._watch.close())
            await asyncio.gather(*ends)

    async def is_ready(self, seconds: float) -> bool:
        """Whether a connection to a server can be established within that many seconds."""
        states = (grpc.ChannelConnectivity.READY,)
        return await self._reach(self._connections.channels, states, seconds)

    async def _reach(
        self,
        channels: Sequence[grpc.aio.Channel],
        states: Collection[grpc.ChannelConnectivity],
        seconds: float,
    ) -> bool:
        """Whether one of the channels is in one of the states within that many seconds."""
        self._require_open()
        ready = [asyncio.ensure_future(_wait_for_state(c, states)) for c in channels]
        closed = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait(
                [*ready, closed], timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            self._require_open()
            return any(task.done() for task in ready)
        finally:
            for task in (*ready, closed):
                task.cancel()

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
            if self._closing.is_set() and not is_being_cancelled():
                raise ClosedError(CLOSED_MEANWHILE) from None
            raise

    async def _perform(self, step: Step) -> Any:
        match step:
            case flows.Start(method, request, seconds, place):
                return self._call(method, request, seconds, place)
            case flows.Finish(call, place):
                return await self._watched(call, cast("Awaitable[bytes | None]", call), place)
            case flows.First(calls, seconds):
                return await _first_done(cast("Sequence[grpc.aio.Call]", calls), seconds)
            case flows.Open(method, requests, seconds, place):
                failures: list[Exception] = []
                one_by_one = (
                    requests if isinstance(requests, bytes) else _one_by_one(requests, failures)
                )
                return _Stream(self._call(method, one_by_one, seconds, place), failures)
            case flows.Next(call, place):
                return await self._watched(call, cast("_Stream", call).read(), place)
            case flows.Send():
                return await self._send(step)
            case flows.Pause(seconds):
                return await self._pause(seconds)
            case flows.Offload(work):
                return await asyncio.to_thread(work)
            case flows.AwaitConnection():
                return await self._await_connection(step)
            case flows.Locked(lock, flow):
                async with cast("asyncio.Lock", lock):
                    return await self.run(flow)

    def _call(self, method: str, requests: object, seconds: float, place: Place) -> Any:
        self._require_open()
        start = self._connections.method(method, place)
        call = start(requests, timeout=seconds, metadata=self._connections.metadata(place))
        forking.leak_in_children(call)
        return call

    async def _watched(
        self, call: Call, waited: Awaitable[bytes | None], place: Place
    ) -> bytes | None:
        if self._watch is None:
            return await waited
        return await self._watch.wait(call.cancel, place, waited)

    async def _await_connection(self, step: flows.AwaitConnection) -> bool:
        if step.must_answer:
            check = self._connections.check(step.place)
            return await self._answers(check, step.place, step.seconds)
        channel = self._connections.channels[step.place.replica]
        return await self._reach([channel], CONNECTED_OR_FAILED, step.seconds)

    async def _is_silent(self, place: Place) -> bool:
        if await self._answers(self._connections.check(place), place, CHECK_SECONDS):
            return False
        channel = self._connections.open_another(place)
        try:
            check: Any = channel.unary_unary(HEALTH_CHECK)
            return not await self._answers(check, place, self._connections.second_check_seconds)
        finally:
            await channel.close()

    async def _answers(self, check: Any, place: Place, seconds: float) -> bool:
        self._require_open()
        try:
            call = check(b"", timeout=seconds, metadata=self._connections.metadata(place))
            forking.leak_in_children(call)
            await call
        except grpc.RpcError as error:
            return not is_silence(error)
        return True

    async def _send(self, step: flows.Send) -> bytes | None:
        failures: list[Exception] = []
        try:
            requests = _one_by_one(step.requests, failures)
            call = self._call(step.method, requests, step.seconds, step.place)
            return cast("bytes | None", await call)
        except asyncio.CancelledError:
            if failures:  # gRPC cancels a call whose requests end with an error
                raise failures.pop() from None
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


async def _one_by_one(requests: Iterator[bytes], failures: list[Exception]) -> AsyncIterator[bytes]:
    """The requests of a stream, one per loop iteration so that it is written; collects failures."""
    try:
        for request in requests:
            yield request
            await asyncio.sleep(0)
    except Exception as error:  # whatever the caller's graphs raise; the reader raises it again
        failures.append(error)
        raise


async def _wait_for_state(
    channel: grpc.aio.Channel, states: Collection[grpc.ChannelConnectivity]
) -> None:
    while True:
        state = channel.get_state(try_to_connect=True)
        if state in states:
            return
        await channel.wait_for_state_change(state)


async def _first_done(calls: Sequence[grpc.aio.Call], seconds: float | None) -> int | None:
    """The index of the first call that has ended; None if none has after these seconds."""
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(index: int, _call: object) -> None:
        if not ended.done():
            ended.set_result(index)

    for i, call in enumerate(calls):
        call.add_done_callback(partial(end, i))
    with suppress(asyncio.TimeoutError):
        return await asyncio.wait_for(ended, seconds)
    return None

"""The calls of a server: lets them in, bounds their time, counts and logs their end."""

from __future__ import annotations

import asyncio
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from typing_extensions import Self

from lazyfx_server.errors import (
    DrainingError,
    MissingInputsError,
    PermissionDeniedError,
    StartingError,
    TimedOutError,
    UnauthenticatedError,
    UnavailableError,
)
from lazyfx_server.rpc.call_deadlines import Deadline, Deadlines
from lazyfx_server.rpc.call_log import log_failure, log_missing, log_refused_caller
from lazyfx_server.rpc.caller import Caller, caller_name
from lazyfx_server.rpc.error_statuses import CODE_NAMES, sent_status, status_of
from lazyfx_server.rpc.pacing import RefusalPacing
from lazyfx_server.telemetry import Observer, RequestHandled

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_INVALID_ARGUMENT: Final[int] = grpc.StatusCode.INVALID_ARGUMENT.value[0]


class CallsInProgress:
    """The calls of a server. They are refused before `open` and after `close`.

    Args:
        observer: Notified of each finished call.
        most_seconds: Maximum duration of any call, whatever its deadline.
        pacing: Delays refusals to connections with too many refused bytes.

    Attributes:
        most_seconds: As above.
        pacing: As above.
        deadlines: The deadlines of the calls.
    """

    def __init__(self, observer: Observer, most_seconds: float, pacing: RefusalPacing) -> None:
        self.most_seconds = most_seconds
        self.pacing = pacing
        self.deadlines = Deadlines(most_seconds)
        self._observer = observer
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusal: Callable[[], UnavailableError] | None = _starting

    def open(self) -> None:
        """Admit calls from now on; before this they are refused with UNAVAILABLE."""
        self._refusal = None

    def close(self) -> None:
        """Refuse calls with UNAVAILABLE from now on."""
        self._refusal = _draining

    @property
    def are_admitted(self) -> bool:
        """Whether calls are admitted."""
        return self._refusal is None

    async def wait_until_idle(self) -> None:
        """Wait until no call is running."""
        await self._idle.wait()

    def enter(self) -> None:
        """Admit a call.

        Raises:
            UnavailableError: The server is starting or shutting down.
        """
        if self._refusal is not None:
            raise self._refusal()
        self._under_way += 1
        self._idle.clear()

    def leave(self, method: str, code: str, seconds: float, *, entered: bool) -> None:
        """Finish a call."""
        if entered:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        self._observer.observe(RequestHandled(method, code, (seconds,)))


class Call:
    """One call, from its arrival to its status.

    Args:
        calls: Those of the server.
        method: Its method, without the service.
        context: What gRPC knows of it.

    Attributes:
        received: Bytes that have arrived.
    """

    def __init__(self, calls: CallsInProgress, method: str, context: Context) -> None:
        self._calls = calls
        self._method = method
        self._context = context
        self._started = time.perf_counter()
        self._entered = False
        self._deadline: Deadline | None = None
        self.received = 0

    async def __aenter__(self) -> Self:
        try:
            self._calls.enter()
        except UnavailableError as error:
            await self._refuse(error)
        self._entered = True
        self._deadline = self._calls.deadlines.begin()
        return self

    def admit(self, caller: Caller, request: Any) -> Any:
        """Charge the caller; count the bytes that arrive.

        Args:
            caller: The caller.
            request: The request, or the stream of requests.

        Returns:
            The same.

        Raises:
            RequestError: A quota is exceeded.
        """
        if not isinstance(request, bytes):
            caller.charge_call(self._method, 0)
            return CountedRequests(self, request)
        self.received = len(request)
        caller.charge_call(self._method, len(request))
        return request

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        deadline = self._deadline
        if deadline is not None:
            self._calls.deadlines.end(deadline)
        if isinstance(error, asyncio.CancelledError) and deadline is not None and deadline.passed:
            most = self._calls.most_seconds
            error = TimedOutError(
                f"the call took longer than {most:g} s (setting max_call_seconds)"
            )
        if error is None:
            self._leave("OK")
        elif isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            seconds = time.perf_counter() - self._started
            log_failure(
                secrets.token_hex(6),
                self._method,
                "CANCELLED",
                seconds,
                caller_name(),
                "caller left",
            )
            self._leave("CANCELLED")
        elif isinstance(error, Exception):
            await self._refuse(error)

    async def _refuse(self, error: Exception) -> NoReturn:
        status = status_of(error)
        forget_frames(error)
        request_id = secrets.token_hex(6)
        status.details.add().Pack(error_details_pb2.RequestInfo(request_id=request_id))
        code = CODE_NAMES[status.code]
        try:
            if status.code == _INVALID_ARGUMENT:
                await self._calls.pacing.wait(self._context.peer(), self.received)
        finally:
            self._log(request_id, error, code, status.message)
            self._leave(code)
        await self._context.abort_with_status(sent_status(status))
        raise AssertionError("abort_with_status returned")

    def _log(self, request_id: str, error: Exception, code: str, message: str) -> None:
        seconds = time.perf_counter() - self._started
        tenant = caller_name()
        if isinstance(error, MissingInputsError):
            log_missing(request_id, self._method, seconds, tenant)
            return
        if isinstance(error, (UnauthenticatedError, PermissionDeniedError)):
            log_refused_caller(self._method, self._context.peer(), message)
        log_failure(request_id, self._method, code, seconds, tenant, message)

    def _leave(self, code: str) -> None:
        seconds = time.perf_counter() - self._started
        self._calls.leave(self._method, code, seconds, entered=self._entered)


class CountedRequests:
    """The stream of requests of a call, of which it counts the bytes and keeps none."""

    def __init__(self, call: Call, requests: AsyncIterator[bytes]) -> None:
        self._call = call
        self._requests = requests

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        request = await self._requests.__anext__()
        self._call.received += len(request)
        return request


def forget_frames(error: BaseException) -> None:
    """Clear the frames in the tracebacks of an error and its causes.

    They reference the request, and grpc.aio's AbortError forms a cycle with the error, so megabytes
    would wait for the garbage collector, which only counts objects.
    """
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__


def _starting() -> UnavailableError:
    return StartingError("the server is starting and not ready yet; try again in a moment")


def _draining() -> UnavailableError:
    return DrainingError("the server is shutting down; try another server, or try again later")

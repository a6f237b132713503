"""Intercepts every call: authentication, readiness, counting, logging, error statuses."""

from __future__ import annotations

import asyncio
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from typing_extensions import Self

from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import (
    DrainingError,
    MissingInputsError,
    PermissionDeniedError,
    RequestError,
    StartingError,
    TimedOutError,
    UnauthenticatedError,
    UnavailableError,
)
from lazyfx_server.rpc.authentication import Authenticator
from lazyfx_server.rpc.call_deadlines import Deadline, Deadlines
from lazyfx_server.rpc.call_log import log_failure, log_missing, log_refused_caller
from lazyfx_server.rpc.caller import Caller, caller_name, enter
from lazyfx_server.rpc.error_statuses import CODE_NAMES, sent_status, status_of
from lazyfx_server.rpc.file_descriptors import FileDescriptorGuard
from lazyfx_server.rpc.hits_at_once import HitsAtOnce
from lazyfx_server.rpc.pacing import RefusalPacing
from lazyfx_server.rpc.standard_services import HANDLER_MAKERS, small_requests
from lazyfx_server.telemetry import Observer, RequestHandled
from lazyfx_server.upstream.route import Routes

Context = grpc.aio.ServicerContext[Any, Any]

_SERVICE = "/lazyfx.v1.GraphCompiler/"
# Probes are not authenticated, and only learn whether the server serves.
_HEALTH = "/grpc.health.v1.Health/"
_INVALID_ARGUMENT: Final[int] = grpc.StatusCode.INVALID_ARGUMENT.value[0]
_IDENTIFIED: ContextVar[Tenant | None] = ContextVar("lazyfx_identified")
"""From the interceptor to the handler, which runs in the same task."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Identifies and charges callers, counts calls, refuses them while starting or draining.

    Errors become statuses.

    Args:
        authenticator: Determines the tenant of a call.
        quotas: Quotas of tenants.
        observer: Notified of each finished call.
        most_seconds: Maximum duration of any call, whatever its deadline.
        pacing: Delays refusals to connections with too many refused bytes.
        routes: Reads what forwarding a call needs; None for a server that forwards none.
        hits: Answers calls of Compile that need nothing but a lookup; None to serve all alike.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        quotas: Quotas,
        observer: Observer,
        most_seconds: float,
        pacing: RefusalPacing,
        routes: Routes | None = None,
        hits: HitsAtOnce | None = None,
    ) -> None:
        self._routes = routes
        self._hits = hits
        self._authenticator = authenticator
        self._quotas = quotas
        self.most_seconds = most_seconds
        self.pacing = pacing
        self._observer = observer
        self._descriptors = FileDescriptorGuard()
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self.deadlines = Deadlines(most_seconds)
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

    async def wait_until_idle(self) -> None:
        """Wait until no call is running."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a method, once; health checks are not wrapped.

        A call without a valid token, or for which no file descriptors are left, gets a handler that
        refuses it before reading anything.
        """
        method = handler_call_details.method
        if method.startswith(_HEALTH):
            return self._bound_small(method, await continuation(handler_call_details))
        try:
            self._descriptors.check()
            metadata = handler_call_details.invocation_metadata or ()
            _IDENTIFIED.set(self._authenticator.identify(metadata))
        except RequestError as error:
            return self._refusing_handler(method, error)
        if (wrapped := self._wrapped.get(method)) is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(_SERVICE):
            return self._bound_small(method, handler)
        wrapped = self._wrap(method.removeprefix(_SERVICE), handler)
        self._wrapped[method] = wrapped
        return wrapped

    def _bound_small(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any] | None
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of another service, which accepts only small requests."""
        if handler is None:
            return None
        if method not in self._wrapped:
            self._wrapped[method] = small_requests(handler)
        return self._wrapped[method]

    def _refusing_handler(
        self, method: str, error: RequestError
    ) -> grpc.RpcMethodHandler[Any, Any]:
        name = method.removeprefix(_SERVICE) if method.startswith(_SERVICE) else "other"

        async def refuse(requests: Any, context: Context) -> None:
            del requests  # a stream that has not been read
            async with _Call(self, name, context):
                raise error

        behaviour: Any = refuse
        return grpc.stream_unary_rpc_method_handler(behaviour)

    def _wrap(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        streams_out = handler.response_streaming
        inner: Any = (
            handler.stream_stream
            or handler.stream_unary
            or handler.unary_stream
            or handler.unary_unary
        )

        at_once = self._answer_at_once if method == "Compile" else None

        # Neither keeps a reference to the request: see `forget_frames`.
        async def answer(request: Any, context: Context) -> Any:
            if at_once is not None and (hit := at_once(request)) is not None:
                return hit
            once = [request]
            del request
            async with _Call(self, method, context) as call:
                once = [call.admit(once.pop())]
                return await inner(once.pop(), context)

        async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
            once = [request]
            del request
            async with _Call(self, method, context) as call:
                once = [call.admit(once.pop())]
                async for item in inner(once.pop(), context):
                    yield item

        make = HANDLER_MAKERS[handler.request_streaming, streams_out]
        behaviour: Any = answers if streams_out else answer
        return make(
            behaviour,
            # The service gets bytes, and parses them itself: bounded, and large ones off the event
            # loop.
            request_deserializer=None,
            response_serializer=_unless_bytes(handler.response_serializer),
        )

    def _answer_at_once(self, request: bytes) -> bytes | None:
        """The answer to a call that needs nothing but a lookup; None to serve it in full.

        It is not asked where it came from (`Routes`): it goes no further.
        """
        if self._hits is None or self._refusal is not None:
            return None
        tenant = _IDENTIFIED.get()
        if tenant is None or self._authenticator.reads_certificates:
            return None
        return self._hits.answer(request, tenant)

    def identify(self, context: Context) -> Caller:
        """The caller of a call that was let in.

        Raises:
            UnauthenticatedError, PermissionDeniedError: The certificate names no tenant.
            FailedPreconditionError: The call has come through this server before.
        """
        tenant = self._authenticator.certified(_IDENTIFIED.get(), context)
        caller = Caller(tenant, self._quotas)
        enter(caller)
        if self._routes is not None:
            metadata = context.invocation_metadata() or ()
            self._routes.enter(metadata, context.time_remaining())
        return caller

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
        self._observer.observe(RequestHandled(method, code, seconds))


class _Call:
    """One call in the interceptor."""

    def __init__(self, interceptor: CallInterceptor, method: str, context: Context) -> None:
        self._interceptor = interceptor
        self._method = method
        self._context = context
        self._started = time.perf_counter()
        self._entered = False
        self._deadline: Deadline | None = None
        self.received = 0

    async def __aenter__(self) -> Self:
        try:
            self._interceptor.enter()
        except UnavailableError as error:
            await self._refuse(error)
        self._entered = True
        self._deadline = self._interceptor.deadlines.begin()
        return self

    def admit(self, request: Any) -> Any:
        """Identify and charge the caller; count the bytes that arrive.

        Args:
            request: The request, or the stream of requests.

        Returns:
            The same.

        Raises:
            RequestError: The caller is not identified, or a quota is exceeded.
        """
        caller = self._interceptor.identify(self._context)
        if not isinstance(request, bytes):
            caller.charge_call(self._method, 0)
            return _Counted(self, request)
        self.received = len(request)
        caller.charge_call(self._method, len(request))
        return request

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        deadline = self._deadline
        if deadline is not None:
            self._interceptor.deadlines.end(deadline)
        if isinstance(error, asyncio.CancelledError) and deadline is not None and deadline.passed:
            most = self._interceptor.most_seconds
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
                await self._interceptor.pacing.wait(self._context.peer(), self.received)
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
        self._interceptor.leave(self._method, code, seconds, entered=self._entered)


class _Counted:
    """The stream of requests of a call, of which it counts the bytes and keeps none."""

    def __init__(self, call: _Call, requests: AsyncIterator[bytes]) -> None:
        self._call = call
        self._requests = requests

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        request = await self._requests.__anext__()
        self._call.received += len(request)
        return request


def _unless_bytes(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """A serializer that sends bytes as they are: a prepared answer is not serialized again."""
    if serialize is None:
        return None

    def serialized(answer: Any) -> bytes:
        return answer if type(answer) is bytes else serialize(answer)

    return serialized


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

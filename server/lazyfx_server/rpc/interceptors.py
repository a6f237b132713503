"""Intercepts every call: who makes it, and what handles it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio

from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import RequestError
from lazyfx_server.rpc.authentication import Authenticator
from lazyfx_server.rpc.caller import Caller, enter
from lazyfx_server.rpc.calls_in_progress import Call, CallsInProgress, Context
from lazyfx_server.rpc.file_descriptors import FileDescriptorGuard
from lazyfx_server.rpc.hits_at_once import HitsAtOnce
from lazyfx_server.rpc.standard_services import HANDLER_MAKERS, small_requests
from lazyfx_server.upstream.route import Routes

_SERVICE = "/lazyfx.v1.GraphCompiler/"
# Probes are not authenticated, and only learn whether the server serves.
_HEALTH = "/grpc.health.v1.Health/"
_IDENTIFIED: ContextVar[Tenant | None] = ContextVar("lazyfx_identified")
"""From the interceptor to the handler, which runs in the same task."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Identifies callers, and has each call let in, charged and counted.

    Errors become statuses.

    Args:
        calls: The calls of the server.
        authenticator: Determines the tenant of a call.
        quotas: Quotas of tenants.
        routes: Reads what forwarding a call needs; None for a server that forwards none.
        hits: Answers calls of Compile that need nothing but a lookup; None to serve all alike.
    """

    def __init__(
        self,
        calls: CallsInProgress,
        authenticator: Authenticator,
        quotas: Quotas,
        routes: Routes | None = None,
        hits: HitsAtOnce | None = None,
    ) -> None:
        self._calls = calls
        self._routes = routes
        self._hits = hits
        self._authenticator = authenticator
        self._quotas = quotas
        self._descriptors = FileDescriptorGuard()
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

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
            async with Call(self._calls, name, context):
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
            async with Call(self._calls, method, context) as call:
                once = [call.admit(self._identify(context), once.pop())]
                return await inner(once.pop(), context)

        async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
            once = [request]
            del request
            async with Call(self._calls, method, context) as call:
                once = [call.admit(self._identify(context), once.pop())]
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
        if self._hits is None or not self._calls.are_admitted:
            return None
        tenant = _IDENTIFIED.get()
        if tenant is None or self._authenticator.reads_certificates:
            return None
        return self._hits.answer(request, tenant)

    def _identify(self, context: Context) -> Caller:
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


def _unless_bytes(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """A serializer that sends bytes as they are: a prepared answer is not serialized again."""
    if serialize is None:
        return None

    def serialized(answer: Any) -> bytes:
        return answer if type(answer) is bytes else serialize(answer)

    return serialized

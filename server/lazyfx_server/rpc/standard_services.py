"""Bounds the requests of the services that are not ours: health and reflection."""

from __future__ import annotations

from typing import Any, Final

import grpc

MAX_SMALL_BYTES: Final = 4096
"""Names of services and symbols are shorter."""

# A request of either service that asks for "?", of which neither knows anything.
_UNKNOWN: Final = b"\n\x01?"

HANDLER_MAKERS: Final = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""What makes a handler, by whether its requests and its responses are streams."""


def small_requests(handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
    """The handler, for which a large request is one for something that is not there."""
    deserialize = handler.request_deserializer
    assert deserialize is not None, "generated code gives one"

    def small(data: bytes) -> Any:
        return deserialize(data if len(data) <= MAX_SMALL_BYTES else _UNKNOWN)

    behaviour: Any = (
        handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary
    )
    return HANDLER_MAKERS[handler.request_streaming, handler.response_streaming](
        behaviour, request_deserializer=small, response_serializer=handler.response_serializer
    )

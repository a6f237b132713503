"""Bounds the requests of standard services: health and reflection."""

from __future__ import annotations

from typing import Any, Final

import grpc

MAX_SMALL_BYTES: Final = 4096
"""Names of services and symbols are shorter than this."""

# A request of either service for "?", which neither knows.
_UNKNOWN: Final = b"\n\x01?"

HANDLER_MAKERS: Final = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""The handler constructor, by whether requests and responses are streams."""


def small_requests(handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that treats a large request as one for an unknown name."""
    deserialize = handler.request_deserializer
    assert deserialize is not None, "generated code defines one"

    def small(data: bytes) -> Any:
        return deserialize(data if len(data) <= MAX_SMALL_BYTES else _UNKNOWN)

    behaviour: Any = (
        handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary
    )
    return HANDLER_MAKERS[handler.request_streaming, handler.response_streaming](
        behaviour, request_deserializer=small, response_serializer=handler.response_serializer
    )

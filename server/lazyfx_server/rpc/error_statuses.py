"""Converts request errors to google.rpc.Status."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from lazyfx.errors import FieldViolation
from lazyfx.shared.grpc_status import rich_status
from lazyfx_server import errors
from lazyfx_server.telemetry.plain_text import escaped

_log = logging.getLogger(__name__)

# Statuses are sent as metadata, which gRPC limits to 8 KiB; text from the caller may be longer.
_MAX_CHARACTERS = 700
_MAX_VIOLATIONS = 3
_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
_NO_RETRY_BY_GRPC = ("grpc-retry-pushback-ms", "-1")

CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
"""Names of status codes by number."""

# Each class with those below it.
_CODES: Final[Mapping[type[errors.RequestError], grpc.StatusCode]] = {
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.MissingInputsError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModuleNotFoundInCacheError: grpc.StatusCode.NOT_FOUND,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.TimedOutError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}

CODES: Final = ("OK", "CANCELLED", *dict.fromkeys(code.name for code in _CODES.values()))
"""The codes that calls end with."""


def _bounded(text: str) -> str:
    """The text on one line, with its middle omitted if it is long."""
    text = escaped(text)
    if len(text) <= _MAX_CHARACTERS:
        return text
    half = _MAX_CHARACTERS // 2
    return f"{text[:half]} [...] {text[-half:]}"


def _violations(error: errors.RequestError) -> list[FieldViolation]:
    return [
        FieldViolation(_bounded(v.field), _bounded(v.description), _bounded(v.node))
        for v in error.violations[:_MAX_VIOLATIONS]
    ]


def sent_status(status: status_pb2.Status) -> grpc.Status:
    """A status as it is sent."""
    sent: Any = rpc_status.to_status(status)
    if status.code == _UNAVAILABLE:
        # Clients retry after the delay in the status; gRPC would retry at once, and report only
        # that it could not connect once this server is gone.
        sent = sent._replace(trailing_metadata=(*sent.trailing_metadata, _NO_RETRY_BY_GRPC))
    result: grpc.Status = sent
    return result


def status_of(error: BaseException) -> status_pb2.Status:
    """The status for an error; bugs are logged, not shown."""
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), None)
    if code is None or not isinstance(error, errors.RequestError):
        _log.error("unexpected error", exc_info=error)
        message = "unexpected error; the server's log has the details"
        return rich_status(grpc.StatusCode.INTERNAL, message)
    message = _bounded(str(error))
    if isinstance(error, errors.InternalError):
        _log.error("internal error: %s", message, exc_info=error)
    return rich_status(
        code,
        message,
        violations=_violations(error),
        missing=getattr(error, "subjects", ()),
        retry_after=getattr(error, "retry_after", None),
    )

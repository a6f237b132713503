"""The mapping between gRPC statuses and lazyfx's errors.

`to_error` turns a failed call into a `lazyfx.errors.ServiceError`; `rich_status` builds the
google.rpc.Status that a server returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from lazyfx import errors
from lazyfx.shared.missing import MISSING
from lazyfx.shared.printable import one_line, printable

# The google.rpc.ErrorInfo that names the node at fault.
_DOMAIN, _NODE_AT_FAULT, _NODE = "lazyfx", "NODE_AT_FAULT", "node"

_ERRORS: dict[grpc.StatusCode, type[errors.ServiceError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.PreconditionError,
    grpc.StatusCode.OUT_OF_RANGE: errors.PreconditionError,
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.UNAUTHENTICATED: errors.DeniedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.DeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.OverloadedError,
    grpc.StatusCode.UNAVAILABLE: errors.UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.TimedOutError,
}
# Bounds on what is read from a status, which a server may fill arbitrarily.
_MAX_DETAILS = 64
_MAX_VIOLATIONS = 256
_MAX_MISSING = 100_000
_MAX_SUBJECT = 256
# Longest retry delay that a server may request, in seconds.
MAX_RETRY_AFTER = 600.0
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def rich_status(
    code: grpc.StatusCode,
    message: str,
    *,
    violations: Sequence[errors.FieldViolation] = (),
    missing: Sequence[str] = (),
    retry_after: float | None = None,
) -> status_pb2.Status:
    """Build a google.rpc.Status.

    Args:
        code: Status code.
        message: Message for people.
        violations: Request fields at fault, as BadRequest.FieldViolation; the node of the first, as
            ErrorInfo.
        missing: Subjects that the request needs ("blobs/<hex>", "values/<graph>/<attribute>"),
            as PreconditionFailure violations of type MISSING.
        retry_after: Seconds, as RetryInfo.
    """
    details: list[any_pb2.Any] = []

    def add(detail: Message) -> None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        details.append(packed)

    if violations:
        request = error_details_pb2.BadRequest()
        for violation in violations:
            request.field_violations.add(field=violation.field, description=violation.description)
        add(request)
    node = violations[0].node if violations else ""
    if node:
        add(
            error_details_pb2.ErrorInfo(
                reason=_NODE_AT_FAULT, domain=_DOMAIN, metadata={_NODE: node}
            )
        )
    if missing:
        failure = error_details_pb2.PreconditionFailure()
        for subject in missing:
            failure.violations.add(type=MISSING, subject=subject)
        add(failure)
    if retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry_after * 1e9))
        add(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=code.value[0], message=message, details=details)


def to_error(call: grpc.RpcError) -> errors.ServiceError:
    """Turn a failed call into the corresponding error."""
    code = call.code()
    return _error(code, call.details() or "", _rich_status_of(call))


def is_from_server(error: BaseException | None) -> bool:
    """Whether the server itself returned this error; otherwise gRPC did not reach it."""
    return isinstance(error, grpc.RpcError) and _rich_status_of(error) is not None


def status_to_error(status: status_pb2.Status) -> errors.ServiceError:
    """Turn a google.rpc.Status from a message into the corresponding error."""
    return _error(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, status)


def _rich_status_of(call: grpc.RpcError) -> status_pb2.Status | None:
    """The status in a call's trailing metadata; None if there is none, or it cannot be parsed."""
    if not call.trailing_metadata():
        return None
    try:
        return rpc_status.from_call(cast("grpc.Call", call))
    except (ProtobufError, ValueError):  # no message, or not for this call
        return None


def _error(
    code: grpc.StatusCode, message: str, status: status_pb2.Status | None
) -> errors.ServiceError:
    violations: list[errors.FieldViolation] = []
    missing: list[str] = []
    node = ""
    retry_after: float | None = None
    for detail in status.details[:_MAX_DETAILS] if status else ():
        bad, failure, retry, info = (
            error_details_pb2.BadRequest(),
            error_details_pb2.PreconditionFailure(),
            error_details_pb2.RetryInfo(),
            error_details_pb2.ErrorInfo(),
        )
        try:
            if detail.Unpack(bad):
                violations += map(_violation, bad.field_violations[:_MAX_VIOLATIONS])
            elif detail.Unpack(failure):
                missing += map(_subject, failure.violations[:_MAX_MISSING])
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.ToNanoseconds() / 1e9
            elif detail.Unpack(info) and info.domain == _DOMAIN:
                node = one_line(info.metadata.get(_NODE, ""))
        except ProtobufError:
            continue  # it has no meaning
    message = printable(message)
    missing = [subject for subject in missing if subject]
    if missing:
        return errors.MissingBlobsError(message, code=code.name, subjects=missing[:_MAX_MISSING])
    if retry_after is not None:
        retry_after = min(max(retry_after, 0.0), MAX_RETRY_AFTER)
    if node and violations:
        violations[0] = replace(violations[0], node=node)
    kind = _ERRORS.get(code, errors.ServerFaultError)
    return kind(
        message,
        code=code.name,
        violations=violations[:_MAX_VIOLATIONS],
        retry_after=retry_after,
    )


def _violation(row: error_details_pb2.BadRequest.FieldViolation) -> errors.FieldViolation:
    return errors.FieldViolation(one_line(row.field), printable(row.description))


def _subject(row: error_details_pb2.PreconditionFailure.Violation) -> str:
    return one_line(row.subject, _MAX_SUBJECT) if row.type == MISSING else ""

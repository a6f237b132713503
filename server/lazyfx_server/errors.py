"""Why a request fails, free of gRPC; `rpc.interceptors` turns each into a status."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import Self

from lazyfx.errors import FieldViolation, LazyfxError


class RequestError(LazyfxError):
    """Base of the failures that a caller is told about.

    Attributes:
        violations: Fields of the request at fault, with the nodes; empty where none is.
    """

    violations: tuple[FieldViolation, ...] = ()

    @classmethod
    def of_field(cls, field: str, description: str, node: str = "") -> Self:
        """An error about one field.

        Args:
            field: Its path in the request; "request" for the message as a whole.
            description: What is wrong with it, and what to do.
            node: What the caller calls the node at fault; empty when no node is.
        """
        error = cls(f"{field}: {description}")
        error.violations = (FieldViolation(field, description, node),)
        return error


class InvalidRequestError(RequestError):
    """The request can never be served as it is; made by `of_field`, so that it names one."""


class MissingInputsError(RequestError):
    """Something must be sent first; `subjects` are as in lazyfx.errors.MissingBlobsError."""

    def __init__(self, message: str, subjects: Sequence[str]) -> None:
        super().__init__(message)
        self.subjects = tuple(subjects)


class FailedPreconditionError(RequestError):
    """The server or the module is not in a state in which this can be done."""


class CrashingGraphError(FailedPreconditionError):
    """Worker processes have died on this graph; it is refused for a while."""


class ModuleNotFoundInCacheError(RequestError):
    """No module has this key (any more)."""


class OverloadedError(RequestError):
    """A bound on work in progress, or on the size of a result, was passed."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnauthenticatedError(RequestError):
    """The caller is not authenticated."""


class PermissionDeniedError(RequestError):
    """The caller is known, and may not do this."""


class UnavailableError(RequestError):
    """The server cannot serve now, and may soon; nothing was done."""


class StartingError(UnavailableError):
    """The server is not ready yet."""


class DrainingError(UnavailableError):
    """The server is shutting down."""


class TimedOutError(RequestError):
    """The work took longer than it may."""


class InternalError(RequestError):
    """A defect of ours; the message is safe to show."""

"""Why a request fails, free of gRPC; `rpc.error_statuses` turns each into a status."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import Self

from lazyfx.errors import FieldViolation, LazyfxError


class RequestError(LazyfxError):
    """Base class of errors that are reported to the caller.

    Attributes:
        violations: The invalid fields of the request, with their nodes; may be empty.
    """

    violations: tuple[FieldViolation, ...] = ()

    @classmethod
    def of_field(cls, field: str, description: str, node: str = "") -> Self:
        """An error about one field.

        Args:
            field: Its path in the request; "request" for the message as a whole.
            description: What is wrong with it, and what to do.
            node: The caller's name of the node at fault; empty if there is none.
        """
        error = cls(f"{field}: {description}")
        error.violations = (FieldViolation(field, description, node),)
        return error


class InvalidRequestError(RequestError):
    """The request can never succeed as it is. Create it with `of_field`, to name a field."""


class MissingInputsError(RequestError):
    """Something must be uploaded first; `subjects` are as in lazyfx.errors.MissingBlobsError."""

    def __init__(self, message: str, subjects: Sequence[str]) -> None:
        super().__init__(message)
        self.subjects = tuple(subjects)


class FailedPreconditionError(RequestError):
    """The server or the module is not in the state that this operation requires."""


class CrashingGraphError(FailedPreconditionError):
    """Worker processes have died on this graph; it is refused for a while."""


class ModuleNotFoundInCacheError(RequestError):
    """No module with this key is cached (any more)."""


class OverloadedError(RequestError):
    """A bound on concurrent work, or on the size of a result, was exceeded."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineTooShortError(OverloadedError):
    """The work would not end before the deadline of its caller, so it was not begun."""


class UnauthenticatedError(RequestError):
    """The caller is not authenticated."""


class PermissionDeniedError(RequestError):
    """The caller is authenticated but not allowed to do this."""


class UnavailableError(RequestError):
    """The server cannot serve this now but may soon; nothing was done."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StartingError(UnavailableError):
    """The server is not ready yet."""


class DrainingError(UnavailableError):
    """The server is shutting down."""


class TimedOutError(RequestError):
    """The work exceeded its time limit."""


class LeaderTimedOutError(TimedOutError):
    """The deadline of the caller that began the work has passed; others may have more time."""


class InternalError(RequestError):
    """A bug in lazyfx; the message is safe to show."""

"""Why a request fails, free of gRPC; `rpc.interceptors` turns each into a status."""

from __future__ import annotations

from collections.abc import Sequence

from lazyfx.errors import FieldViolation, LazyfxError


class RequestError(LazyfxError):
    """Base of the failures that a caller is told about."""


class InvalidRequestError(RequestError):
    """The request can never be served as it is; names fields and remedies."""

    def __init__(self, message: str, violations: Sequence[FieldViolation] = ()) -> None:
        super().__init__(message)
        self.violations = tuple(violations)

    @classmethod
    def of_field(cls, field: str, description: str) -> InvalidRequestError:
        """An error about one field."""
        return cls(f"{field}: {description}", [FieldViolation(field, description)])


class MissingError(RequestError):
    """Something must be sent first; `subjects` are as in lazyfx.errors.MissingBlobsError."""

    def __init__(self, message: str, subjects: Sequence[str]) -> None:
        super().__init__(message)
        self.subjects = tuple(subjects)


class UnmetError(RequestError):
    """The server or the module is not in a state in which this can be done."""


class CrashingGraphError(UnmetError):
    """Worker processes have died on this graph; it is refused for a while."""


class ModuleNotFoundInCacheError(RequestError):
    """No module has this key (any more)."""


class OverloadedError(RequestError):
    """A bound on work in progress, or on the size of a result, was passed."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnidentifiedError(RequestError):
    """The caller is not authenticated."""


class ForbiddenError(RequestError):
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

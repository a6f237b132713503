"""What a failed call to the upstream means: for the caller, or for this server alone."""

from __future__ import annotations

from typing import Final

from lazyfx import errors as received
from lazyfx_server import errors
from lazyfx_server.compiling.forwarding.upstream_calls import (
    DeadlinePassedError,
    UpstreamFailureError,
)
from lazyfx_server.compiling.request import ENVIRONMENT_FIELD, PIPELINE_FIELD

VIA_FIELD: Final = "metadata.lazyfx-via"
"""The field that a server names when a request has come through it before."""

_AWAY_SECONDS: Final = 2.0
PAUSE_SECONDS: Final = 60.0
"""What only an operator can repair need not be tried with each request."""


def meaning_of(
    error: received.LazyfxError, *, forwards_callers: bool
) -> errors.RequestError | UpstreamFailureError:
    """The error for the caller, or the reason to go on without the upstream.

    The caller is told what only the caller can change: a refused token, a quota, a deadline. All
    else is this server's own affair: it does the work, and an invalid request fails here as it
    would have failed there.

    Args:
        error: From a call.
        forwards_callers: Whether the upstream saw the caller's own identity.
    """
    if not isinstance(error, received.ServiceError):
        return UpstreamFailureError(str(error), "invalid")
    reason = error.reason
    if isinstance(error, received.MissingBlobsError):
        return UpstreamFailureError("it repeatedly asks for what it was sent", "failed")
    if isinstance(error, received.DeniedError):
        return _denied(error, forwards_callers=forwards_callers)
    if isinstance(error, received.OverloadedError) and error.retry_after is not None:
        return errors.OverloadedError(f"the upstream: {reason}", error.retry_after)
    if isinstance(error, DeadlinePassedError):
        return errors.LeaderTimedOutError("the upstream did not answer before the deadline")
    if isinstance(error, received.TimedOutError):
        return errors.TimedOutError(f"the upstream: {reason}")
    if isinstance(error, received.UnavailableError) and error.retry_after is not None:
        # It answers, but not this now. Its health checks say whether to go on asking it.
        return UpstreamFailureError(reason, "failed", is_passing=True)
    if isinstance(error, received.UnavailableError) or error.code == "CANCELLED":
        return UpstreamFailureError(reason, "unreachable")
    if isinstance(error, received.PreconditionError):
        return _unfit(error)
    is_absent = isinstance(error, received.NotFoundError)
    return UpstreamFailureError(reason, "failed", not_found=is_absent)


def of_what_is_needed(failure: UpstreamFailureError) -> errors.RequestError:
    """The error for the caller of what only the upstream could have made."""
    told = f"the upstream did not serve it, and this server cannot build it: {failure}"
    if failure.is_passing:
        return errors.UnavailableError(f"{told}; try again", retry_after=_AWAY_SECONDS)
    return errors.FailedPreconditionError(told)


def _denied(
    error: received.DeniedError, *, forwards_callers: bool
) -> errors.RequestError | UpstreamFailureError:
    if not forwards_callers:
        return UpstreamFailureError(
            f"it refuses this server: {error.reason}; set --upstream-token, or --tokens so that "
            "callers show their own",
            "denied",
            PAUSE_SECONDS,
        )
    if error.code == "UNAUTHENTICATED":
        return errors.UnauthenticatedError(f"the upstream: {error.reason}")
    return errors.PermissionDeniedError(f"the upstream: {error.reason}")


def _unfit(error: received.PreconditionError) -> UpstreamFailureError:
    fields = {violation.field for violation in error.violations}
    if VIA_FIELD in fields:
        return UpstreamFailureError(
            f"requests come back from it: {error.reason}", "incompatible", PAUSE_SECONDS
        )
    if ENVIRONMENT_FIELD in fields:
        return UpstreamFailureError(error.reason, "incompatible", PAUSE_SECONDS)
    if names_pipeline(error):
        return UpstreamFailureError(error.reason, "incompatible")
    return UpstreamFailureError(error.reason, "failed")


def names_pipeline(error: received.PreconditionError) -> bool:
    """Whether the upstream refuses a request because its versions of the passes differ."""
    return any(violation.field == PIPELINE_FIELD for violation in error.violations)

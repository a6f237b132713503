"""Retries of calls that a server refused for now, after the delay that it asked for."""

from __future__ import annotations

import random
import time
from typing import Final

from lazyfx.errors import LazyfxError, OverloadedError, UnavailableError
from lazyfx.flows import Flow, Pause

# The minimum delay between tries, doubled each time: a server may ask for any delay.
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_OWN_PAUSE_SECONDS: Final = 5.0
# How long a server may take to be back after it has said so, and how often it is looked for.
_RESTART_SECONDS: Final = 10.0
_RESTART_PAUSE_SECONDS: Final = 0.25
# Clients that are refused together retry at random times within this fraction of the delay.
_SPREAD: Final = 0.2


# gRPC ends calls with longer timeouts at once.
_LONGEST_SECONDS: Final = 30 * 86_400.0


def timeout_seconds(timeout: float | None, default: float) -> float:
    """The timeout of a call: the caller's, or the default if it is None.

    Raises:
        LazyfxError: It is not a positive number.
    """
    seconds = default if timeout is None else timeout
    if not (isinstance(seconds, (int, float)) and seconds > 0):
        raise LazyfxError(f"timeout must be a number of seconds greater than 0, not {seconds!r}")
    return min(seconds, _LONGEST_SECONDS)


class ExpectedReturn:
    """Whether a server that cannot be reached has said that it will be back.

    A server that drains or starts says so; for a moment between the two, nothing listens.
    """

    def __init__(self) -> None:
        self._until = 0.0

    def note(self, refusal: UnavailableError) -> None:
        """Take note of an error: if it has a retry delay, the server sent it."""
        if refusal.retry_after is not None:
            self._until = time.monotonic() + refusal.retry_after + _RESTART_SECONDS

    @property
    def is_expected(self) -> bool:
        """Whether to try again, although the server cannot be reached."""
        return time.monotonic() < self._until


class RetryBudget:
    """The remaining time of one call, including its retries and waits.

    Args:
        seconds: Total seconds that the call may take.
    """

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._pause = _FIRST_PAUSE_SECONDS

    def left(self) -> float:
        """The seconds left, never negative."""
        return max(0.0, self._deadline - time.monotonic())

    def wait(
        self, refusal: OverloadedError | UnavailableError, *, is_expected: bool = False
    ) -> Flow[None]:
        """Wait for the server's retry delay.

        Args:
            refusal: The error.
            is_expected: Try again without a delay of the server, too; see `ExpectedReturn`.

        Raises:
            OverloadedError, UnavailableError: The refusal, if it has no retry delay or one that
                exceeds the time left.
        """
        delay = refusal.retry_after
        if delay is None and is_expected:
            delay = _RESTART_PAUSE_SECONDS
        if delay is None:
            raise refusal
        pause = max(delay, self._pause)
        self._pause = min(2 * self._pause, _LONGEST_OWN_PAUSE_SECONDS)
        spare = self.left() - pause
        if spare <= 0:
            raise refusal
        # Half of the spare time is left for the try itself.
        pause += min(pause * _SPREAD, spare / 2) * random.random()  # noqa: S311 - spreads load only
        yield Pause(pause)

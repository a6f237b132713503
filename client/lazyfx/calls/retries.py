"""Trying again where a server refused a call for now and said when to come back."""

from __future__ import annotations

import random
import time
from typing import Final

from lazyfx.errors import OverloadedError, UnavailableError
from lazyfx.flows import Flow, Pause

# Between tries at least this much, doubled each time: a server may name any number.
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_OWN_PAUSE_SECONDS: Final = 5.0
# Many clients are refused at once; they come back spread over this part of what they were told.
_SPREAD: Final = 0.2


class RetryBudget:
    """What is left of the time that one call may take, with its waits.

    Args:
        seconds: That the call may take in all.
    """

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._pause = _FIRST_PAUSE_SECONDS

    def left(self) -> float:
        """Seconds that are left, never less than none."""
        return max(0.0, self._deadline - time.monotonic())

    def wait(self, refusal: OverloadedError | UnavailableError) -> Flow[None]:
        """Wait as long as the server asks.

        Raises:
            OverloadedError, UnavailableError: The refusal, when it does not say when to come back,
                or when that is later than the call may take.
        """
        if refusal.retry_after is None:
            raise refusal
        pause = max(refusal.retry_after, self._pause)
        self._pause = min(2 * self._pause, _LONGEST_OWN_PAUSE_SECONDS)
        spare = self.left() - pause
        if spare <= 0:
            raise refusal
        # Half of what is to spare stays for the try itself.
        pause += min(pause * _SPREAD, spare / 2) * random.random()  # noqa: S311 - spreads load only
        yield Pause(pause)

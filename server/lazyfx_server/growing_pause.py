"""The pauses between tries of something that fails: starting a worker, reaching another server."""

from __future__ import annotations

import random


class GrowingPause:
    """Each pause is twice as long as the one before, less up to half of it at random.

    The random part spreads the tries of many servers that lost the same thing at the same moment.

    Args:
        first: Seconds that the first pause does not exceed.
        longest: Seconds that no pause exceeds.

    Attributes:
        seconds: The next pause, at its longest.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self.seconds = first

    def next(self) -> float:
        """The seconds to pause now."""
        seconds = self.seconds
        self.seconds = min(2 * seconds, self._longest)
        return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret

    def reset(self) -> None:
        """Begin with the first pause again, after a success."""
        self.seconds = self._first

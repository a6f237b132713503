"""Answers that a client refused, counted by the kind of error, and logged once for each kind."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from lazyfx.errors import ArtifactError, DecodeError, LazyfxError, ValuesRefusedError

_REFUSALS: Final = (DecodeError, ValuesRefusedError, ArtifactError)

_log = logging.getLogger("lazyfx")


class Refusals:
    """Counts the answers of one server that were refused. Threads may share it.

    Args:
        address: The server, for the log.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def counts(self) -> dict[str, int]:
        """How often answers were refused, by the name of the error's class."""
        with self._lock:
            return dict(self._counts)

    def add(self, error: LazyfxError) -> None:
        """Count an error if it is a refusal of what the server sent."""
        if not isinstance(error, _REFUSALS):
            return
        kind = type(error).__name__
        with self._lock:
            self._counts[kind] += 1
            first = self._counts[kind] == 1
        if first:
            _log.warning("refused an answer from %s: %s: %s", self._address, kind, error)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what is refused inside."""
        try:
            yield
        except LazyfxError as error:
            self.add(error)
            raise

"""Counts refused answers by kind of error, and logs each kind once."""

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
    """Counts the refused answers of one server. Thread-safe.

    Args:
        address: The server, for the log.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def counts(self) -> dict[str, int]:
        """Numbers of refused answers, by the name of the error class."""
        with self._lock:
            return dict(self._counts)

    def add(self, error: LazyfxError) -> None:
        """Count an error if it means that an answer was refused."""
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
        """Count refusals within the block."""
        try:
            yield
        except LazyfxError as error:
            self.add(error)
            raise

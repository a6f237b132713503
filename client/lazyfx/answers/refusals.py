"""Counts refused answers by kind of error, and logs each kind once."""

from __future__ import annotations

import logging
import threading
from collections import Counter
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

    def counted(self) -> _Counted:
        """Count refusals within the block."""
        return _Counted(self)


class _Counted:
    """The block in which refusals count. A class, not a generator: every hit enters one."""

    __slots__ = ("_refusals",)

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, LazyfxError):
            self._refusals.add(error)

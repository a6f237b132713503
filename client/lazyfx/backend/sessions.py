"""One client for each server that this process compiles with, and a memory of one that is away."""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import Final

from lazyfx.errors import LazyfxError, TimedOutError, UnavailableError
from lazyfx.sync import Client

# A model has many graphs: once the server did not answer, the next ones do not wait for it.
AWAY_SECONDS: Final = 30.0


class Session:
    """A client, and whether its server was away a moment ago."""

    def __init__(self, address: str) -> None:
        self.client = Client(address)
        self._away_until = 0.0
        self._away: LazyfxError | None = None

    def require_present(self) -> None:
        """Fail at once if the server did not answer a moment ago.

        Raises:
            ServiceError: What it failed with then.
        """
        if self._away is not None and time.monotonic() < self._away_until:
            raise self._away

    def note(self, error: LazyfxError | None) -> None:
        """Take note of how a call went."""
        self._away = error if isinstance(error, (UnavailableError, TimedOutError)) else None
        self._away_until = time.monotonic() + AWAY_SECONDS


class _Sessions:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[int, str], Session] = {}

    def get(self, address: str) -> Session:
        # A forked process cannot use its parent's connection.
        key = (os.getpid(), address)
        with self._lock:
            session = self._open.get(key)
            if session is None:
                session = self._open[key] = Session(address)
            return session

    def close(self) -> None:
        with self._lock:
            for (pid, _), session in self._open.items():
                if pid == os.getpid():
                    session.client.close()
            self._open.clear()


# dynamo calls the backend as a function, graph by graph; connections outlive each call.
_sessions: Final = _Sessions()
atexit.register(_sessions.close)


def session_for(address: str) -> Session:
    """The session of this process with the server at `address`."""
    return _sessions.get(address)


def close_sessions() -> None:
    """Close the connections; the next graph opens new ones."""
    _sessions.close()

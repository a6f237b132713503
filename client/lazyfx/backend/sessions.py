"""One client for each server that this process compiles with, and a memory of one that is down."""

from __future__ import annotations

import atexit
import threading
import time
from typing import Final

from lazyfx.blocking_client import Client
from lazyfx.calls import forking
from lazyfx.errors import LazyfxError, TimedOutError, UnavailableError
from lazyfx.v1 import compiler_pb2 as pb

# A model has many graphs: once the server did not answer, the next ones do not wait for it.
DOWN_SECONDS: Final = 30.0
# So long each of them looks whether it is back.
_PROBE_SECONDS: Final = 0.25


class Session:
    """A client, and whether its server was down a moment ago."""

    def __init__(self, address: str) -> None:
        self.client = Client(address)
        self._down_until = 0.0
        self._down: LazyfxError | None = None
        self._info: pb.GetServerInfoResponse | None = None

    def native_target(self) -> pb.NativeTarget | None:
        """Where native artifacts of the server run; None when it makes none. Asked once.

        Raises:
            ServiceError: The server is not there.
        """
        if self._info is None:
            self._info = self.client.server_info()
        return self._info.native if self._info.HasField("native") else None

    def require_trusted(self) -> None:
        """Check that native artifacts of the server would be opened. The server is asked once.

        Raises:
            UntrustedServerError: They would not; says how to trust the server.
            ServiceError: The server is not there.
        """
        self.client.require_trusted()

    def require_reachable(self) -> None:
        """Fail at once if the server did not answer a moment ago, and cannot be reached now.

        Raises:
            ServiceError: What it failed with then.
        """
        if self._down is None or time.monotonic() >= self._down_until:
            return
        # A server that takes connections and does not answer would hold up each graph.
        was_gone = isinstance(self._down, UnavailableError)
        if was_gone and self.client.is_ready(_PROBE_SECONDS):
            self._down = None
            return
        raise _without_traceback(self._down)

    def record_outcome(self, error: LazyfxError | None) -> None:
        """Record the outcome of a call."""
        down = isinstance(error, (UnavailableError, TimedOutError))
        self._down = _without_traceback(error) if down and error is not None else None
        self._down_until = time.monotonic() + DOWN_SECONDS
        if error is not None:
            self._info = None  # another server may answer next time


def _without_traceback(error: LazyfxError) -> LazyfxError:
    """The same error without the frames that it came through, which keep a whole model alive."""
    other = type(error).__new__(type(error), *error.args)
    vars(other).update(vars(error))
    return other


class _Sessions:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, Session] = {}

    def get(self, address: str) -> Session:
        # Before the lock: in a forked process it may be held by a thread that is not there.
        forking.require_not_forked()
        with self._lock:
            session = self._open.get(address)
            if session is None:
                session = self._open[address] = Session(address)
            return session

    def close(self) -> None:
        if forking.is_forked():
            return
        with self._lock:
            for session in self._open.values():
                session.client.close()
            self._open.clear()


# dynamo calls the backend as a function, graph by graph; connections outlive each call.
_sessions: Final = _Sessions()
atexit.register(_sessions.close)


def session_for(address: str) -> Session:
    """The session of this process with the server at `address`.

    Raises:
        ForkedProcessError: This process was forked after a session had been opened.
    """
    return _sessions.get(address)


def close_sessions() -> None:
    """Close the connections; the next graph opens new ones."""
    _sessions.close()

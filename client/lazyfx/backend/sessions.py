"""One client per server of this process, which remembers if the server was unreachable."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Sequence
from typing import Final

from lazyfx.backend.warm_start.warm_starts import WarmStart
from lazyfx.blocking_client import Client
from lazyfx.calls import forking
from lazyfx.errors import LazyfxError, TimedOutError, UnavailableError
from lazyfx.trust.verifying import Provenance
from lazyfx.v1 import compiler_pb2 as pb

# A model has many graphs: once the server did not answer, later graphs do not wait for it.
DOWN_SECONDS: Final = 30.0
# How long each of them checks whether it is back.
_PROBE_SECONDS: Final = 0.25


class Session:
    """A client, and whether its server was recently unreachable.

    Attributes:
        client: The client.
        signed: Who signed the last native artifact; None until there was one.
        warm_start: What this job asked for when it last ran.
    """

    def __init__(self, address: str) -> None:
        self.client = Client(address)
        self.signed: Provenance | None = None
        self.warm_start = WarmStart(self.client)
        self._down_until = 0.0
        self._down: LazyfxError | None = None
        self._info: pb.GetServerInfoResponse | None = None

    def native_targets(self) -> Sequence[pb.NativeTarget]:
        """The target machines of the server's native artifacts; empty if it builds none. Cached.

        Raises:
            ServiceError: The server is unavailable.
        """
        if self._info is None:
            self._info = self.warm_start.take_server() or self.client.server_info()
        if self._info.native_targets or not self._info.HasField("native"):
            return self._info.native_targets
        return (self._info.native,)  # a server of an earlier version

    def require_trusted(self) -> None:
        """Check that native artifacts of the server would be opened. Cached.

        Raises:
            UntrustedServerError: They would not; says how to trust the server.
            ServiceError: The server is unavailable.
        """
        self.client.require_trusted()

    def require_reachable(self) -> None:
        """Fail at once if the server recently did not answer and cannot be reached now.

        Raises:
            ServiceError: The error of the last attempt.
        """
        if self._down is None or time.monotonic() >= self._down_until:
            return
        # A server that accepts connections but does not answer would delay each graph.
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
            # Another server may answer next time, also than the one that sent artifacts.
            self._info = None
            self.warm_start.take_server()


def _without_traceback(error: LazyfxError) -> LazyfxError:
    """The same error without its traceback, whose frames keep a whole model alive."""
    other = type(error).__new__(type(error), *error.args)
    vars(other).update(vars(error))
    return other


class _Sessions:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, Session] = {}

    def get(self, address: str) -> Session:
        # Before the lock: in a forked process it may be held by a thread that no longer exists.
        forking.require_not_forked()
        with self._lock:
            session = self._open.get(address)
            if session is None:
                session = self._open[address] = Session(address)
            return session

    def close(self, *, at_exit: bool = False) -> None:
        if forking.is_forked():
            return
        with self._lock:
            for session in self._open.values():
                session.warm_start.close(at_exit=at_exit)
                session.client.close()
            self._open.clear()


# dynamo calls the backend as a function for each graph; connections outlive the calls.
_sessions: Final = _Sessions()
atexit.register(_sessions.close, at_exit=True)


def session_for(address: str) -> Session:
    """The session of this process with the server at `address`.

    Raises:
        ForkedProcessError: This process was forked after a session had been opened.
    """
    return _sessions.get(address)


def close_sessions() -> None:
    """Close the connections; the next graph opens new ones."""
    _sessions.close()

"""Receives artifacts in a thread, and hands out each once."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

from lazyfx.artifacts.prefetched import PrefetchedArtifact
from lazyfx.v1 import compiler_pb2 as pb

# How long a job waits for the plan, and for each further part of an artifact that was announced.
_PLAN_SECONDS: Final = 0.5
_PART_SECONDS: Final = 1.0
# How long it waits for one artifact in all.
_MOST_SECONDS: Final = 30.0
# What nobody has asked for is dropped this long after the last artifact has arrived.
_KEEP_SECONDS: Final = 300.0


class Receiving:
    """The artifacts that a server sends before they are asked for.

    A thread reads them and does nothing else: it imports and loads nothing, so it cannot disturb
    what this process traces meanwhile. Whatever goes wrong in it ends it, and the artifacts that
    have not arrived are asked for as usual.

    Args:
        read: Reads the stream into this object; called in the thread.
    """

    def __init__(self, read: Callable[[Receiving], None]) -> None:
        self._read = read
        self._changed = threading.Condition()
        self._expected: set[bytes] | None = None
        self._planned: frozenset[bytes] = frozenset()
        self._arrived: dict[bytes, PrefetchedArtifact] = {}
        self._steps = 0
        self._has_ended = False
        self._is_stopped = False
        self._is_late = False
        self._server: pb.GetServerInfoResponse | None = None
        self._thread = threading.Thread(target=self._run, name="lazyfx-prefetch", daemon=True)

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: This process cannot have another thread.
        """
        self._thread.start()

    def stop(self) -> None:
        """Read no more, and drop what has arrived."""
        with self._changed:
            self._is_stopped = self._has_ended = True
            self._arrived.clear()
            self._step()

    def take(self, key: bytes) -> PrefetchedArtifact | None:
        """The artifact with a key, the first time that it is asked for.

        Waits for it if it has been announced, as long as parts arrive. Once a wait was in vain,
        nothing is waited for.

        Returns:
            None if it has not been announced, has been taken, or does not arrive.
        """
        end = time.monotonic() + _MOST_SECONDS
        with self._changed:
            while key not in self._arrived:
                if self._has_ended or self._is_late or not self._is_expected(key):
                    return None
                if not self._is_moving() or time.monotonic() > end:
                    # What has not arrived will be asked for, and is not waited for again.
                    self._is_late = True
                    return None
            return self._arrived.pop(key)

    def _is_moving(self) -> bool:
        """Wait for the next step of the thread; whether there was one in time."""
        before = self._steps
        seconds = _PLAN_SECONDS if self._expected is None else _PART_SECONDS
        return self._changed.wait_for(lambda: self._steps != before, seconds)

    def take_server(self) -> pb.GetServerInfoResponse | None:
        """What the server said of itself, the first time; later it may be another server."""
        with self._changed:
            server, self._server = self._server, None
            return server

    @property
    def planned_keys(self) -> frozenset[bytes]:
        """What the server has announced; empty until then."""
        return self._planned

    def _is_expected(self, key: bytes) -> bool:
        return self._expected is None or key in self._expected

    # As a PrefetchReceiver, in the thread:

    @property
    def wants_more(self) -> bool:
        """Whether to read on."""
        return not (self._is_stopped or self._is_late)

    def progressed(self) -> None:
        """Take note of a part."""
        with self._changed:
            self._step()

    def planned(self, plan: pb.PrefetchPlan) -> None:
        """Take note of what will arrive, and of what the server says of itself."""
        with self._changed:
            self._server = plan.server
            self._planned = frozenset(plan.keys)
            self._expected = set(self._planned)
            self._step()

    def arrived(self, artifact: PrefetchedArtifact) -> None:
        """Keep an artifact."""
        with self._changed:
            if self._expected is not None:
                self._expected.discard(artifact.key)
            if not self._is_stopped:
                self._arrived[artifact.key] = artifact
            self._step()

    def _step(self) -> None:
        self._steps += 1
        self._changed.notify_all()

    def _run(self) -> None:
        # Of an earlier server, or a broken connection: `take` says that there is nothing.
        with contextlib.suppress(Exception):
            self._read(self)
        with self._changed:
            self._has_ended = True
            self._step()
            self._changed.wait_for(lambda: self._is_stopped or not self._arrived, _KEEP_SECONDS)
            self._arrived.clear()

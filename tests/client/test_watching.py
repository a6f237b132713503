"""The thread that watches the calls of a blocking client."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from lazyfx.calls.watching import ThreadWatch
from lazyfx.flows import ONLY_PLACE


def test_a_thread_that_could_not_be_started_is_started_for_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closing = threading.Event()
    watch = ThreadWatch(lambda _place: False, closing)
    start, started = threading.Thread.start, []

    def refused(_thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    def counted(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert watch.wait(lambda: None, ONLY_PLACE, lambda: b"unwatched") == b"unwatched"
    monkeypatch.setattr(threading.Thread, "start", counted)
    for _ in range(2):
        assert watch.wait(lambda: None, ONLY_PLACE, lambda: b"answer") == b"answer"
    closing.set()
    assert started == ["lazyfx-watch"]

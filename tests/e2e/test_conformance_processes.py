"""A run over many cases survives those that crash, hang or raise."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from conformance import processes


@dataclass(frozen=True)
class Trying:
    seconds: float = 5.0

    @contextmanager
    def trying(self) -> Iterator[Callable[[str], list[str]]]:
        yield _attempt

    def failed(self, name: str, outcome: str, note: str) -> str:
        return f"{name} {outcome}: {note}"


def _attempt(name: str) -> list[str]:
    if name == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "hangs":
        time.sleep(60)
    if name == "raises":
        raise ValueError(name)
    return [name]


def test_a_case_that_dies_hangs_or_raises_is_reported_and_the_others_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_PRELOADED", [])
    cases = ["a", "dies", "b", "hangs", "c", "raises", "d"]
    assert dict(processes.run(cases, Trying(), cases_a_process=3)) == {
        "a": ["a"],
        "dies": ["dies fault: the process died"],
        "b": ["b"],
        "hangs": ["hangs slow: took more than 5 s"],
        "c": ["c"],
        "raises": ["raises fault: ValueError: raises"],
        "d": ["d"],
    }

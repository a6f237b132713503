"""What refusals cost the caller in time, and the server in memory: bounded, both."""

from __future__ import annotations

import gc
import weakref

from lazyfx_server.rpc.interceptors import _forget_frames
from lazyfx_server.rpc.pacing import MAX_SECONDS, UNCOUNTED_BYTES, RefusalPacing

MB = 2**20


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_megabytes_are_free_and_the_rest_is_paid_for() -> None:
    clock = _Clock()
    pacing = RefusalPacing(MB, clock)
    sizes = [4 * MB] * (UNCOUNTED_BYTES // (4 * MB))
    assert [pacing.delay("a", size) for size in sizes] == [0.0] * len(sizes)
    assert pacing.delay("a", MB) == 1.0
    assert pacing.delay("a", 100 * MB) == MAX_SECONDS
    assert pacing.delay("b", 4 * MB) == 0.0, "another connection owes nothing"


def test_what_is_owed_wears_off() -> None:
    clock = _Clock()
    pacing = RefusalPacing(MB, clock)
    assert pacing.delay("a", UNCOUNTED_BYTES + MB) == 1.0
    clock.now += 2.0
    assert pacing.delay("a", MB) == 0.0


def test_a_rate_of_0_delays_nothing() -> None:
    assert RefusalPacing(0).delay("a", 2**40) == 0.0


def test_many_connections_are_remembered_within_a_bound() -> None:
    pacing = RefusalPacing(1, _Clock())
    for number in range(10_000):
        pacing.delay(f"ipv4:127.0.0.1:{number}", 1)
    assert len(pacing._debts) <= 4096


class _Large:
    """Stands for the bytes of a request, which take no weak reference."""


def _refuse(large: _Large) -> None:
    try:
        {}["the cause"]
    except KeyError:
        assert large
        raise ValueError("refused") from None


def test_a_refusal_that_is_kept_keeps_no_request() -> None:
    large = _Large()
    gone = weakref.ref(large)
    gc.disable()
    try:
        try:
            _refuse(large)
        except ValueError as error:
            kept = error
        del large
        assert gone() is not None, "the frames hold it"
        _forget_frames(kept)
        assert gone() is None
    finally:
        gc.enable()

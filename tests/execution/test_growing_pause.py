"""Pauses between tries grow up to a bound, and differ from server to server."""

from __future__ import annotations

from lazyfx_server.growing_pause import GrowingPause


def test_pauses_grow_to_the_longest_and_are_never_longer() -> None:
    pause = GrowingPause(0.5, 3.0)
    bounds = [0.5, 1.0, 2.0, 3.0, 3.0]
    for longest in bounds:
        assert longest / 2 <= pause.next() <= longest
    pause.reset()
    assert pause.next() <= 0.5
    assert len({GrowingPause(0.5, 3.0).next() for _ in range(10)}) > 1

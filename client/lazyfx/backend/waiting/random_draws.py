"""Which code drew random numbers from which state of the generators.

A graph as it is and the compiled one draw different numbers from the same state. A checkpoint
restores the state before it computes again, and must then draw as it did the first time: its
gradients would be those of another dropout mask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import torch

# More calls than wait for a backward pass at any time.
_MAX_NOTES: Final = 65_536


class _DrawLog:
    """Whether the compiled code ran, by the state that it ran from.

    The oldest are dropped by halves, and without a lock, which a fork could leave locked.
    """

    def __init__(self) -> None:
        self._new: dict[bytes, bool] = {}
        self._old: dict[bytes, bool] = {}

    def add(self, state: bytes, compiled: bool) -> None:
        if len(self._new) >= _MAX_NOTES // 2:
            self._old, self._new = self._new, {}
        self._new[state] = compiled

    def get(self, state: bytes) -> bool:
        return self._new.get(state, self._old.get(state, False))


# A checkpoint runs one graph without gradients and another one with them: notes are shared.
_draw_log: Final = _DrawLog()


def generator_state(inputs: Sequence[Any]) -> bytes:
    """What the generators of the devices of some inputs will draw from, as a digest."""
    devices = {value.device for value in inputs if isinstance(value, torch.Tensor)}
    states = [torch.get_rng_state()]
    states += [
        torch.cuda.get_rng_state(device)
        for device in sorted(devices, key=str)
        if device.type == "cuda"
    ]
    whole = hashlib.blake2b(digest_size=16)
    for state in states:
        whole.update(state.numpy().tobytes())
    return whole.digest()


def record_draw(state: bytes, *, compiled: bool) -> None:
    """Record which code drew from a state, outside of any backward pass."""
    _draw_log.add(state, compiled)


def last_draw_was_compiled(state: bytes) -> bool:
    """Whether compiled code was the last to draw from this state."""
    return _draw_log.get(state)

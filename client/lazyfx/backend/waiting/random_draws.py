"""Records which code drew random numbers from which generator state.

Uncompiled and compiled code draw different numbers from the same state. A checkpoint restores the
state before it recomputes, and must then draw the same numbers as the first time; otherwise its
gradients would be those of another dropout mask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import torch

# More calls than are ever waiting for a backward pass.
_MAX_NOTES: Final = 65_536


class _DrawLog:
    """Whether compiled code ran, by generator state.

    The older half is dropped when it is full. No lock, because a fork could leave it locked.
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


# A checkpoint runs one graph without gradients and another one with them, so the log is shared.
_draw_log: Final = _DrawLog()


def generator_state(inputs: Sequence[Any]) -> bytes:
    """A digest of the generator states of the devices of some inputs."""
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
    """Record which code drew from a state, outside any backward pass."""
    _draw_log.add(state, compiled)


def last_draw_was_compiled(state: bytes) -> bool:
    """Whether compiled code was the last to draw from this state."""
    return _draw_log.get(state)

"""What a graph that runs may switch and leave switched, and how that stays behind."""

# ruff: noqa: SLF001 - levels have no public reader

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

T = TypeVar("T")


def in_fresh_thread(work: Callable[[], T]) -> T:
    """Run `work` where grad mode, autocast and vmap levels are untouched and stay so.

    Graphs switch them; the switches live in the thread and end with it, also if the work fails
    half-way. Context variables of the caller go along.
    """
    guard_devices()
    pool = ThreadPoolExecutor(1, thread_name_prefix="lazyfx-graph")
    with forward_level_left(), pool:
        return pool.submit(copy_context().run, work).result()


@functools.lru_cache(maxsize=1)
def guard_devices() -> None:
    """Let a thread that stays have the first fake mode of this process.

    It sets up how devices are guarded. Where torch 2.11 is built for CUDA and finds no device, that
    ends with the thread, and the next fake mode crashes.
    """
    with FakeTensorMode():
        pass


@contextmanager
def forward_level_left() -> Iterator[None]:
    """Leave the forward-mode level that a graph enters in the block and does not leave itself.

    A process has one such level, whatever its threads. If it stayed entered, all later forward-mode
    derivatives of the process would fail as nested ones.
    """
    before = _is_entered()
    try:
        yield
    finally:
        if not before and _is_entered():
            torch._C._exit_dual_level(level=0)


def _is_entered() -> bool:
    try:
        level = torch._C._enter_dual_level()
    except RuntimeError:  # there is one already, and there can be one only
        return True
    torch._C._exit_dual_level(level=level)
    return False

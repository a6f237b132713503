"""Contains the thread and process state that a running graph may change."""

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
    """Run `work` in a new thread, with default grad mode, autocast and vmap levels.

    Graphs switch these; the switches are thread-local and end with the thread, even if the work
    fails. The caller's context variables are copied.
    """
    guard_devices()
    pool = ThreadPoolExecutor(1, thread_name_prefix="lazyfx-graph")
    with restored_forward_level(), pool:
        return pool.submit(copy_context().run, work).result()


@functools.lru_cache(maxsize=1)
def guard_devices() -> None:
    """Create the first fake mode of this process in a long-lived thread.

    The first one sets up device guards. In torch 2.11 with CUDA but without a device, they end with
    the thread, and the next fake mode crashes.
    """
    with FakeTensorMode():
        pass


@contextmanager
def restored_forward_level() -> Iterator[None]:
    """Exit the forward-mode AD level that a graph enters in the block without exiting it.

    A process has only one such level, shared by all threads. If it stayed entered, all later
    forward-mode derivatives in the process would fail as nested ones.
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
    except RuntimeError:  # there already is one, and there can be only one
        return True
    torch._C._exit_dual_level(level=level)
    return False

"""Runs code that may change thread-local state of torch, with a guard for every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lazyfx.shared import forward_levels
from lazyfx_server.passes.analysis.torch_device_guards import guard_absent_devices

T = TypeVar("T")


def in_fresh_thread(work: Callable[[], T]) -> T:
    """Run `work` as `forward_levels.in_fresh_thread` does; also protects from absent devices.

    A training graph of a device that this torch lacks would otherwise end the process.
    """
    guard_absent_devices()
    return forward_levels.in_fresh_thread(work)

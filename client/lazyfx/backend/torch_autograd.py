"""Private names of torch's autograd that the backend uses; imported only here."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["after_this_backward", "graph_is_kept", "in_backward"]


def in_backward() -> bool:
    """Whether this thread is running a backward pass."""
    return int(torch._C._current_graph_task_id()) != -1  # noqa: SLF001


def graph_is_kept() -> bool:
    """Whether the running backward pass retains its graph."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())  # noqa: SLF001


def after_this_backward(work: Callable[[], None]) -> None:
    """Call something when the running backward pass has ended."""
    torch.autograd.Variable._execution_engine.queue_callback(work)  # noqa: SLF001

"""What the backend uses of torch's autograd that has no public name, imported here alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["after_this_backward", "graph_is_kept", "in_backward"]


def in_backward() -> bool:
    """Whether this thread runs a backward pass now."""
    return int(torch._C._current_graph_task_id()) != -1  # noqa: SLF001


def graph_is_kept() -> bool:
    """Whether the backward pass that runs now was asked to keep what was saved for it."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())  # noqa: SLF001


def after_this_backward(work: Callable[[], None]) -> None:
    """Have something called when the backward pass that runs now has ended."""
    torch.autograd.Variable._execution_engine.queue_callback(work)  # noqa: SLF001

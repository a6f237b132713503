"""Tracks calls whose backward pass is still pending.

An uncompiled graph saves tensors like eager code, including buffers; compiled code writes to these
buffers, which autograd detects. So an uncompiled call and the next call before its backward pass
must run the same code if they share memory.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch.utils._pytree import tree_leaves

from lazyfx.backend.torch_autograd import after_this_backward, graph_is_kept, in_backward


class _PendingBackward:
    """A pending backward pass of one output.

    Only the autograd graph refers to it, as a hook of the output's node: it dies with the graph, or
    with the backward pass that frees the saved tensors.
    """

    def __init__(self, owner: object, memory: frozenset[int]) -> None:
        self.owner = weakref.ref(owner)
        self.memory = memory

    def __call__(self, *_: object) -> None:
        if not graph_is_kept():
            # A checkpoint within it may still be recomputed.
            after_this_backward(lambda: _calls.discard(self))


class _PendingCalls:
    """The pending calls of this process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: weakref.WeakSet[_PendingBackward] = weakref.WeakSet()

    def after_fork(self) -> None:
        """Runs in a forked child: another thread of the parent may have held the lock."""
        self._lock = threading.RLock()

    def add(self, owner: object, inputs: Sequence[Any], outputs: object) -> None:
        """Record a call whose outputs may be differentiated."""
        nodes = {
            id(node): node
            for value in tree_leaves(outputs)
            if isinstance(value, torch.Tensor) and (node := value.grad_fn) is not None
        }
        if not nodes:
            return
        memory = buffer_memory(inputs)
        for node in nodes.values():
            backward = _PendingBackward(owner, memory)
            node.register_hook(backward)
            with self._lock:
                self._waiting.add(backward)

    def discard(self, backward: _PendingBackward) -> None:
        with self._lock:
            self._waiting.discard(backward)

    def has_pending(self, owner: object, inputs: Sequence[Any]) -> bool:
        """Whether a call of `owner`, or one with some of the same memory, is pending."""
        with self._lock:
            waiting = list(self._waiting)
        if not waiting:
            return False
        memory = buffer_memory(inputs)
        return any(each.owner() is owner or memory & each.memory for each in waiting)


# Graphs of one model share its buffers, and dynamo compiles them one by one.
_calls: Final = _PendingCalls()
os.register_at_fork(after_in_child=_calls.after_fork)


def record_call(owner: object, inputs: Sequence[Any], outputs: object) -> None:
    """Record that a graph ran uncompiled.

    Args:
        owner: The owner of the graph.
        inputs: Of the call.
        outputs: Outputs of the call; those without a gradient are ignored.
    """
    _calls.add(owner, inputs, outputs)


def has_pending_call(owner: object, inputs: Sequence[Any]) -> bool:
    """Whether the backward pass of an uncompiled call that concerns this one is pending.

    Args:
        owner: The owner of the graph to be called.
        inputs: Of the call.

    Returns:
        True if `owner` made such a call, or if one shares memory with the inputs of this call.
    """
    return _calls.has_pending(owner, inputs)


def buffer_memory(inputs: Sequence[Any]) -> frozenset[int]:
    """Addresses of buffers: graphs do not write to parameters and activations."""
    return frozenset(
        value.untyped_storage()._cdata  # noqa: SLF001 - storages have no other identity
        for value in inputs
        if isinstance(value, torch.Tensor) and not value.requires_grad and _has_storage(value)
    )


def _has_storage(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and type(tensor) in (torch.Tensor, torch.nn.Buffer)


__all__ = ["buffer_memory", "has_pending_call", "in_backward", "record_call"]

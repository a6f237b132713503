"""Runs the graph uncompiled until the server's result arrives, and then the result."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch.fx import GraphModule

from lazyfx.backend.remote import GraphRequest, GraphResult, Runnable
from lazyfx.backend.waiting.pending_backwards import (
    buffer_memory,
    has_pending_call,
    in_backward,
    record_call,
)
from lazyfx.backend.waiting.random_draws import generator_state, last_draw_was_compiled, record_draw
from lazyfx.shared.native.shape_guards import Conditions


class DeferredGraph:
    """A graph that is requested in a thread while calls run it uncompiled.

    The result is loaded in the thread of the next call and used for calls whose sizes fit. No call
    uses it while the backward pass of a related uncompiled call is pending: see
    `pending_backwards`. Graphs that share buffers are swapped together: otherwise, whether a call
    runs compiled depends on the calls of the others, and a recomputed checkpoint differs.

    If a graph draws random numbers, a recomputed checkpoint runs the same code as the first time:
    see `random_draws`. Reentrant checkpoints run one graph without gradients and then another one
    with them, whose result may not have arrived; so without gradients such a graph stays
    uncompiled. The first call always runs uncompiled, which shows whether the graph draws random
    numbers.

    Args:
        module: The graph.
        graph_request: The request.
        ask: Asks the server; called in a separate thread.
        on_swap: Called with the result when it is first used.
        on_error: Called with the error if there will be no result.

    Attributes:
        buffers: Addresses of those that the last uncompiled call was given.
    """

    def __init__(
        self,
        module: GraphModule,
        graph_request: GraphRequest,
        ask: Callable[[GraphRequest], GraphResult],
        *,
        on_swap: Callable[[GraphResult], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._as_it_is: Runnable = module.forward
        self._graph_request = graph_request
        self._ask = ask
        self._on_swap = on_swap
        self._on_error = on_error
        self._answer: GraphResult | None = None
        self._compiled: Runnable | None = None
        self._conditions: Conditions | None = None
        self._draws: bool | None = None
        self.buffers: frozenset[int] = frozenset()
        self._thread = threading.Thread(target=self._wait, name="lazyfx-wait", daemon=True)
        _graphs.add(self)
        self._thread.start()

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph, compiled if that is available, fits, and is safe for pending calls."""
        state = generator_state(inputs) if self._draws is not False else b""
        if self._may_run_compiled(inputs, state) and self._fits(inputs):
            assert self._compiled is not None, "the result is present"
            self._record_draw(state, compiled=True)
            return self._compiled(*inputs)
        self._record_draw(state, compiled=False)
        outputs = self._as_it_is(*inputs)
        self.buffers = buffer_memory(inputs)
        record_call(self, inputs, outputs)
        if self._draws is None and not _has_empty_tensor(inputs):
            self._draws = generator_state(inputs) != state
        return outputs

    def _record_draw(self, state: bytes, *, compiled: bool) -> None:
        if self._draws is not False and not in_backward():
            record_draw(state, compiled=compiled)

    def _may_run_compiled(self, inputs: Sequence[Any], state: bytes) -> bool:
        if self._draws is None or (self._answer is None and self._compiled is None):
            return False
        if self._draws and in_backward():
            return self._compiled is not None and last_draw_was_compiled(state)
        if self._draws and not torch.is_grad_enabled():
            return False
        if in_backward():
            # A checkpoint is recomputed by the same code as the first time: torch compares the
            # tensors that both save.
            return self._compiled is not None and not has_pending_call(self, ())
        if has_pending_call(self, inputs):
            return False
        if self._compiled is None and self._answer is not None and self._others_are_done(inputs):
            self._swap(self._answer)
        return self._compiled is not None

    def _others_are_done(self, inputs: Sequence[Any]) -> bool:
        """Whether all graphs that share buffers with this one have their results, or none."""
        memory = buffer_memory(inputs)
        others = [other for other in list(_graphs) if other is not self]
        return all(other.wait(0) for other in others if other.buffers & memory)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until there is a result or an error; returns whether there is one."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _wait(self) -> None:
        try:
            self._answer = self._ask(self._graph_request)
        except Exception as error:  # noqa: BLE001 - the job runs on whatever it is
            self._on_error(error)

    def _swap(self, answer: GraphResult) -> None:
        self._answer = None
        try:
            compiled = answer.open()
        except Exception as error:  # noqa: BLE001 - the job runs on whatever it is
            self._on_error(error)
            return
        flat = self._graph_request.flat
        if flat is not None and answer.conditions:
            self._conditions = Conditions(answer.conditions, flat.inputs)
        self._compiled = compiled
        self._on_swap(answer)

    def _fits(self, inputs: Sequence[Any]) -> bool:
        return self._conditions is None or self._conditions.hold(inputs)


# Those of this process; graphs of one model share its buffers.
_graphs: Final[weakref.WeakSet[DeferredGraph]] = weakref.WeakSet()


def _has_empty_tensor(inputs: Sequence[Any]) -> bool:
    """Whether the graph may have drawn nothing only because a tensor is empty."""
    return any(isinstance(value, torch.Tensor) and not value.numel() for value in inputs)

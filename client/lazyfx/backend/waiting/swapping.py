"""Runs the graph uncompiled until the server's result arrives, and then the result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from lazyfx.backend.remote import GraphRequest, GraphResult, Runnable
from lazyfx.backend.torch_autograd import checkpoint_run, in_backward, keeping_versions
from lazyfx.backend.waiting.checkpoint_choices import CheckpointChoices
from lazyfx.backend.waiting.random_draws import generator_state, last_draw_was_compiled, record_draw
from lazyfx.shared.native.shape_guards import Conditions


class DeferredGraph:
    """A graph that is requested in a thread while calls run it uncompiled.

    The result is loaded in the thread of the next call and used for calls whose sizes fit, so calls
    of both kinds may be waiting for their backward passes. Three things make that safe:

    - Compiled code writes to a batch norm's buffers where autograd notices it, and uncompiled code
      where it does not. So compiled calls leave alone the version counters that uncompiled calls
      leave alone.
    - A recomputed checkpoint runs the same code as the first time: see `checkpoint_choices`.
    - If a graph draws random numbers, so does a reentrant checkpoint: see `random_draws`. It runs
      one graph without gradients and then another one with them, whose result may not have arrived;
      so without gradients such a graph stays uncompiled.

    The first call always runs uncompiled. It shows which version counters change, and whether the
    graph draws random numbers.

    Args:
        module: The graph.
        graph_request: The request.
        ask: Asks the server; called in a separate thread.
        on_swap: Called with the result when it is first used.
        on_error: Called with the error if there will be no result.
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
        self._choices = CheckpointChoices()
        self._unnoticed: tuple[int, ...] = ()
        self._thread = threading.Thread(target=self._wait, name="lazyfx-wait", daemon=True)
        self._thread.start()

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph, compiled if that is available, fits, and is what a checkpoint ran."""
        state = generator_state(inputs) if self._draws is not False else b""
        compiled = self._choose(inputs, state)
        if self._draws is not False and not in_backward():
            record_draw(state, compiled=compiled is not None)
        if compiled is None:
            return self._run_uncompiled(inputs, state)
        unnoticed = [inputs[i] for i in self._unnoticed if not inputs[i].is_inference()]
        with keeping_versions(unnoticed):
            return compiled(*inputs)

    def _choose(self, inputs: Sequence[Any], state: bytes) -> Runnable | None:
        """The compiled code, if this call runs it."""
        run = checkpoint_run()
        if run is not None and run.recomputation is not None:
            first = self._choices.first_choice(run)
            if first is not None:
                return self._compiled if first else None
        compiled = self._compiled_for(inputs, state)
        if run is not None and run.recomputation is None:
            self._choices.record(run, compiled=compiled is not None)
        return compiled

    def _compiled_for(self, inputs: Sequence[Any], state: bytes) -> Runnable | None:
        if self._draws is None:
            return None
        if self._draws and in_backward():
            may_run = last_draw_was_compiled(state)
        else:
            may_run = not self._draws or torch.is_grad_enabled()
        if not may_run:
            return None
        if self._answer is not None and not in_backward():
            self._swap(self._answer)
        return self._compiled if self._fits(inputs) else None

    def _run_uncompiled(self, inputs: Sequence[Any], state: bytes) -> Any:
        versions = _versions(inputs)
        outputs = self._as_it_is(*inputs)
        self._unnoticed = tuple(i for i, v in _versions(inputs).items() if v == versions[i])
        if self._draws is None and not _has_empty_tensor(inputs):
            self._draws = generator_state(inputs) != state
        return outputs

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


def _versions(inputs: Sequence[Any]) -> dict[int, int]:
    """Version counters, by the number of the input. Inference tensors have none."""
    return {
        i: value._version  # noqa: SLF001
        for i, value in enumerate(inputs)
        if isinstance(value, torch.Tensor) and not value.is_inference()
    }


def _has_empty_tensor(inputs: Sequence[Any]) -> bool:
    """Whether the graph may have drawn nothing only because a tensor is empty."""
    return any(isinstance(value, torch.Tensor) and not value.numel() for value in inputs)

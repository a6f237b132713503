"""Running the graph as it is until the server's result is there, then that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule

from lazyfx.backend.remote import Answer, Question
from lazyfx.native.shapes import Conditions

Runnable = Callable[..., Any]


class Swapping:
    """A graph that is asked for in a thread while calls run it as it is.

    The result is loaded in the thread of the next call, and used for calls whose sizes fit it.

    Args:
        module: The graph.
        question: What is asked for.
        ask: Asks; called in a thread of its own.
        on_swap: Told of the answer when it runs.
        on_error: Told why there will be none.
    """

    def __init__(
        self,
        module: GraphModule,
        question: Question,
        ask: Callable[[Question], Answer],
        *,
        on_swap: Callable[[Answer], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._as_it_is: Runnable = module.forward
        self._question = question
        self._ask = ask
        self._on_swap = on_swap
        self._on_error = on_error
        self._answer: Answer | None = None
        self._compiled: Runnable | None = None
        self._conditions: Conditions | None = None
        self._thread = threading.Thread(target=self._wait, name="lazyfx-wait", daemon=True)
        self._thread.start()

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph, compiled if that is there and fits."""
        if self._answer is not None:
            self._swap(self._answer)
        if self._compiled is not None and self._fits(inputs):
            return self._compiled(*inputs)
        return self._as_it_is(*inputs)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until there is an answer or an error; tells whether there is one."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _wait(self) -> None:
        try:
            self._answer = self._ask(self._question)
        except Exception as error:  # noqa: BLE001 - the job runs on whatever it is
            self._on_error(error)

    def _swap(self, answer: Answer) -> None:
        self._answer = None
        try:
            compiled = answer.open()
        except Exception as error:  # noqa: BLE001 - the job runs on whatever it is
            self._on_error(error)
            return
        flat = self._question.flat
        if flat is not None and answer.conditions:
            self._conditions = Conditions(answer.conditions, flat.inputs)
        self._compiled = compiled
        self._on_swap(answer)

    def _fits(self, inputs: Sequence[Any]) -> bool:
        return self._conditions is None or self._conditions.hold(inputs)

"""What is sent to the server for one graph of dynamo's, and how the answers become its code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from torch.fx import GraphModule

from lazyfx.backend.options import BackendOptions
from lazyfx.backend.remote import GraphRequest, GraphResult, Runnable, make_request
from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.native.torch_inductor import RestartAnalysis

_LONGEST_REASON: Final = 300


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests for one graph.

    Attributes:
        requests: One for the graph itself, or one for each graph of AOTAutograd.
        join: Makes the graph's code from that of the requests, in the same order.
    """

    requests: Sequence[GraphRequest]
    join: Callable[[Sequence[Runnable]], Runnable]


def make_plan(module: GraphModule, inputs: Sequence[object], options: BackendOptions) -> Plan:
    """Plan to send a graph as dynamo captured it, or else what AOTAutograd makes of it.

    Raises:
        UnsupportedGraphError: The server can compile neither; names the node or input.
        LazyfxError: See `make_request`.
        RestartAnalysis: Makes dynamo trace the frame again.
    """
    try:
        request = make_request(module, inputs, options)
        if not options.wait:
            return Plan([request], lambda code: code[0])
        request.digest()
        return Plan([request], lambda code: code[0])
    except UnsupportedGraphError as refusal:
        if not options.wait:
            raise
        return _desugared(module, inputs, options, refusal)


def _desugared(
    module: GraphModule,
    inputs: Sequence[object],
    options: BackendOptions,
    refusal: UnsupportedGraphError,
) -> Plan:
    """Plan to send the graphs of AOTAutograd.

    Raises:
        UnsupportedGraphError: There is no other way; also says why the graph itself is not sent.
    """
    # It imports Inductor, which most jobs need not.
    from lazyfx.backend.planning.desugaring import desugar

    try:
        desugared = desugar(module, inputs, options)
    except RestartAnalysis:
        raise
    except Exception as error:  # torch raises errors of every kind
        reason = f"{refusal.reason}; after AOTAutograd: {_first_line(error)}"
        raise UnsupportedGraphError(
            reason, node=refusal.node, attribute=refusal.attribute, remedy=refusal.remedy
        ) from error

    def join(code: Sequence[Runnable]) -> Runnable:
        for part, each in zip(desugared.parts, code, strict=True):
            part.code = each
        return desugared.call

    return Plan(desugared.requests, join)


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line}"[:_LONGEST_REASON]


def ask_for_all(
    requests: Sequence[GraphRequest], ask: Callable[[GraphRequest], GraphResult]
) -> list[GraphResult]:
    """Make all requests at once.

    Raises:
        Exception: The error of the first request that failed.
    """
    results: dict[int, GraphResult] = {}
    errors: dict[int, Exception] = {}

    def one(number: int) -> None:
        try:
            results[number] = ask(requests[number])
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits
            errors[number] = error

    # Daemons: a process that is interrupted does not wait for a compile.
    others = [
        threading.Thread(target=one, args=(number,), name="lazyfx-part", daemon=True)
        for number in range(1, len(requests))
    ]
    for thread in others:
        thread.start()
    if requests:
        one(0)
    for thread in others:
        thread.join()
    if errors:
        raise errors[min(errors)]
    return [results[number] for number in range(len(requests))]

"""What is sent to the server for one graph of dynamo's, and how the answers become its code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from torch.fx import GraphModule

from lazyfx.backend.options import BackendOptions
from lazyfx.backend.remote import GraphRequest, GraphResult, Runnable, make_request
from lazyfx.backend.torch_autograd import has_traced_hooks
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
        _refuse_traced_hooks(options)
        request = make_request(module, inputs, options)
        if not options.wait:
            return Plan([request], lambda code: code[0])
        request.digest()
        return Plan([request], lambda code: code[0])
    except UnsupportedGraphError as refusal:
        if not options.wait:
            raise
        return _desugared(module, inputs, options, refusal)


def _refuse_traced_hooks(options: BackendOptions) -> None:
    """Refuse to leave hooks to the server's AOTAutograd, which does not know them.

    Raises:
        UnsupportedGraphError: There are some, and the server would run AOTAutograd.
    """
    if options.compile == "inductor" and has_traced_hooks():
        raise UnsupportedGraphError(
            "saved-tensors hooks that are GraphModules become part of the forward and backward "
            "graphs, which the server would make without them",
            remedy="omit wait=False, or use Python functions as hooks",
        )


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
        raise _with_second_reason(refusal, error) from error

    def join(code: Sequence[Runnable]) -> Runnable:
        for part, each in zip(desugared.parts, code, strict=True):
            part.code = each
        return desugared.call

    return Plan(desugared.requests, join)


def _with_second_reason(refusal: UnsupportedGraphError, error: Exception) -> UnsupportedGraphError:
    """Why neither the graph itself nor AOTAutograd's graphs are sent."""
    remedy = refusal.remedy
    if isinstance(error, UnsupportedGraphError):
        remedy = error.remedy or remedy
        second = str(UnsupportedGraphError(error.reason, node=error.node))
    else:
        line = next(iter(str(error).strip().splitlines()), "")
        second = f"{type(error).__name__}: {line}"
    return UnsupportedGraphError(
        f"{refusal.reason}; after AOTAutograd: {second[:_LONGEST_REASON]}",
        node=refusal.node,
        attribute=refusal.attribute,
        remedy=remedy,
    )


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

"""What dynamo calls: one graph in, something to call out, whatever happens to the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule

from lazyfx.backend.local import compile_here
from lazyfx.backend.options import BackendOptions, read_options
from lazyfx.backend.remote import Answer, Question, ask, make_question
from lazyfx.backend.reporting import Outcome, records
from lazyfx.backend.sessions import Session, session_for
from lazyfx.errors import LazyfxError, ServiceError

Runnable = Callable[..., Any]


def compile_graph(
    module: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Runnable:
    """Compile one graph of torch.compile on the server, or go on without it.

    Args:
        module: What dynamo captured; it is not changed.
        example_inputs: Inputs of the call that is being compiled: tensors and sizes.
        mode: As torch.compile takes it.
        options: See `lazyfx.backend.BackendOptions`.

    Returns:
        Something that takes the graph's inputs and returns its outputs.

    Raises:
        ValueError: An option has a value that it does not take.
        LazyfxError: The server could not help, and `on_error` is "raise".
    """
    chosen = read_options(options, mode)
    started = time.perf_counter()
    try:
        session = session_for(chosen.address)
        session.require_present()
        answer = _ask(session, make_question(module, example_inputs, chosen))
        answer.enforce()
        call = answer.open()
    except Exception as error:  # a training job never ends because of its compiler's cache
        if chosen.on_error == "raise":
            raise
        return _go_on(module, example_inputs, chosen, error, started)
    _record(module, answer.digest, "remote", started, cache=answer.cache)
    return call


def _ask(session: Session, question: Question) -> Answer:
    try:
        answer = ask(session, question)
    except LazyfxError as error:
        session.note(error)
        raise
    session.note(None)
    return answer


def _go_on(
    module: GraphModule,
    inputs: Sequence[Any],
    options: BackendOptions,
    error: Exception,
    started: float,
) -> Runnable:
    """Warn once, count, and compile here."""
    native = options.compile == "inductor" and options.on_error == "local"
    kind = error.code if isinstance(error, ServiceError) else type(error).__name__
    here = "are compiled by Inductor here" if native else "run as they are"
    records.fell_back(
        kind,
        f"lazyfx: the server at {options.address} could not help ({error}); graphs {here}, "
        "and lazyfx.backend_report() tells which",
    )
    call = compile_here(module, inputs, options) if native else module.forward
    _record(module, "", "local" if native else "eager", started, reason=str(error))
    return call


def _record(
    module: GraphModule,
    digest: str,
    outcome: Outcome,
    started: float,
    *,
    cache: str = "",
    reason: str = "",
) -> None:
    records.add(
        nodes=len(module.graph.nodes),
        digest=digest,
        outcome=outcome,
        cache=cache,
        seconds=time.perf_counter() - started,
        reason=reason,
    )

"""The entry point for dynamo: takes a graph, returns a callable, whatever the server does."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch.fx import GraphModule

from lazyfx.backend.agreement import DisagreementError, RankStatus, agree
from lazyfx.backend.fallback_report import EqualBlocks, KernelCounts, Outcome, records
from lazyfx.backend.local import compile_locally
from lazyfx.backend.options import BackendOptions, read_options
from lazyfx.backend.planning.plans import Plan, ask_for_all, make_plan
from lazyfx.backend.progress_display import show_progress
from lazyfx.backend.recording import record
from lazyfx.backend.remote import GraphRequest, GraphResult, Runnable, ask
from lazyfx.backend.sessions import Session, session_for
from lazyfx.backend.symbolic_floats import InitialFloats, specialize_inputs, specialize_unsent
from lazyfx.backend.waiting.swapping import DeferredGraph
from lazyfx.backend.warm_start.early_start import start_early
from lazyfx.errors import LazyfxError, ServiceError, UnsupportedGraphError
from lazyfx.shared.native.torch_inductor import RestartAnalysis

# From the least to the most work.
_CACHE_STATUSES: Final = ("", "hit", "joined", "miss")

# dynamo calls the backend again for each attempt at a frame; the values are kept per process.
initial_floats: Final = InitialFloats()


def compile_graph(
    module: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Runnable:
    """Compile one graph of torch.compile on the server, or fall back.

    Args:
        module: The graph captured by dynamo; it is not changed.
        example_inputs: Inputs of the call that is being compiled: tensors and sizes.
        mode: The `mode` of torch.compile.
        options: See `lazyfx.backend.BackendOptions`.

    Returns:
        A function that takes the graph's inputs and returns its outputs.

    Raises:
        ValueError: An option has an invalid value.
        LazyfxError: The server could not help, and `on_error` is "raise".
        TensorifyScalarRestartAnalysis: Makes dynamo trace the frame again.
    """
    chosen = read_options(options, mode)
    if chosen.compile == "inductor":
        specialize_unsent(module)
        if not chosen.wait:
            initial_floats.specialize(module)
    return _Graph(module, example_inputs, chosen).compile()


start_early(compile_graph)


@dataclass
class _Graph:
    """The compile of one graph."""

    module: GraphModule
    inputs: Sequence[Any]
    options: BackendOptions
    started: float = field(default_factory=time.perf_counter)
    digest: str = ""
    divergence: str = ""
    kernels: KernelCounts | None = None
    equal_blocks: tuple[EqualBlocks, ...] = ()
    recorded: str = ""
    compiled: bool = False
    prefetched: bool = False

    def compile(self) -> Runnable:
        """Ask the server, agree with the other ranks, and fall back if necessary.

        Raises:
            TensorifyScalarRestartAnalysis: The server wants floats to be constants; handled by
                dynamo.
        """
        call: Runnable | None = None
        fixed: tuple[GraphRequest, Sequence[int]] | None = None
        error: Exception | None = None
        cache = ""
        try:
            session = session_for(self.options.address)
            plan = make_plan(self.module, self.inputs, self.options)
            self._record_requests(plan.requests)
            session.require_reachable()
            if not self.options.wait:
                return self._deferred(session, plan.requests[0])
            self.digest = plan.requests[0].digest() if plan.requests else ""
            with show_progress(len(self.module.graph.nodes)) as notice:
                answers = ask_for_all(plan.requests, lambda each: _request(session, each, notice))
            fixed = _fixed_inputs(plan.requests, answers)
            if fixed is None:
                call, cache = self._open(plan, answers), _worst_cache(answers)
        except RestartAnalysis:
            raise
        except Exception as problem:  # noqa: BLE001 - a job never ends because of its compiler's cache
            error = problem
        if self.options.agreement == "all":
            error = self._agreed(error)
        if error is None and fixed is not None:
            try:
                specialize_inputs(fixed[0].graph, fixed[1])
            except LazyfxError as problem:
                error = problem
        if call is None or error is not None:
            assert error is not None, "there is a result or an error"
            return self._fall_back(error)
        self._record("remote", cache=cache)
        return call

    def _record_requests(self, requests: Sequence[GraphRequest]) -> None:
        if self.options.record:
            names = [record(each, Path(self.options.record)).name for each in requests]
            self.recorded = names[0] if names else ""

    def _open(self, plan: Plan, answers: Sequence[GraphResult]) -> Runnable:
        for answer in answers:
            answer.enforce()
        code = [answer.open() for answer in answers]
        built = [answer.kernels for answer in answers if answer.kernels is not None]
        if built:
            self.kernels = KernelCounts(
                sum(each.known for each in built), sum(each.compiled for each in built)
            )
        self.equal_blocks = tuple(group for answer in answers for group in answer.equal_blocks)
        self.compiled = any(answer.compiled for answer in answers)
        self.prefetched = bool(answers) and all(answer.prefetched for answer in answers)
        return plan.join(code)

    def _agreed(self, error: Exception | None) -> Exception | None:
        """The decision of all ranks; this rank's own error is kept if it has one."""
        own = RankStatus(self.digest, "" if error is None else f"{type(error).__name__}: {error}")
        problem, self.divergence = agree(own, self.module)
        if problem and error is None:
            return DisagreementError(problem)
        return error

    def _fall_back(self, error: Exception) -> Runnable:
        """Warn once, count, and compile here.

        Raises:
            Exception: The error, if `on_error` is "raise".
        """
        if self.options.on_error == "raise":
            self._record("failed", reason=str(error))
            raise error
        native = self.options.compile == "inductor" and self.options.on_error == "local"
        self._warn(error, "are compiled locally by Inductor" if native else "run uncompiled")
        call = self.module.forward
        if native:
            try:
                call = compile_locally(self.module, self.inputs, self.options)
            except RestartAnalysis:
                # Dynamo traces the frame again and calls the backend again.
                records.undo_fallback(_kind(error))
                raise
            except Exception as problem:  # any error of Inductor is recorded and re-raised
                self._record("failed", reason=f"{error}; and locally: {_first_line(problem)}")
                raise
        self._record("local" if native else "eager", reason=str(error))
        return call

    def _deferred(self, session: Session, graph_request: GraphRequest) -> Runnable:
        def swapped(answer: GraphResult) -> None:
            self.digest, self.kernels = answer.digest, answer.kernels
            self.equal_blocks = answer.equal_blocks
            self.compiled, self.prefetched = answer.compiled, answer.prefetched
            self._record("remote", cache=answer.cache)

        def failed(error: Exception) -> None:
            self._warn(error, "run uncompiled")
            self._record("eager", reason=str(error))

        return DeferredGraph(
            self.module,
            graph_request,
            partial(_request_deferred, session),
            on_swap=swapped,
            on_error=failed,
        )

    def _warn(self, error: Exception, instead: str) -> None:
        records.record_fallback(
            _kind(error),
            f"lazyfx: the server at {self.options.address} could not help ({error}); graphs "
            f"{instead}; lazyfx.backend_report() lists them",
        )

    def _record(self, outcome: Outcome, *, cache: str = "", reason: str = "") -> None:
        records.add(
            nodes=len(self.module.graph.nodes),
            digest=self.digest,
            outcome=outcome,
            cache=cache,
            seconds=time.perf_counter() - self.started,
            reason=reason,
            divergence=self.divergence,
            kernels=self.kernels,
            equal_blocks=self.equal_blocks,
            compiled=self.compiled,
            prefetched=self.prefetched,
            recorded=self.recorded,
        )


def _kind(error: Exception) -> str:
    """The key by which fallbacks are counted."""
    return error.code if isinstance(error, ServiceError) else type(error).__name__


def _first_line(error: Exception) -> str:
    """Class and first line of an error, for a report."""
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}"[:300]


def _fixed_inputs(
    requests: Sequence[GraphRequest], answers: Sequence[GraphResult]
) -> tuple[GraphRequest, Sequence[int]] | None:
    """The first request whose answer wants floats to be constants, and the inputs with them."""
    for request, answer in zip(requests, answers, strict=True):
        if answer.fixed_inputs:
            return request, answer.fixed_inputs
    return None


def _worst_cache(answers: Sequence[GraphResult]) -> str:
    """The cache status of all: "miss" if anything was compiled, then "joined", then "hit"."""
    return max((answer.cache for answer in answers), key=_CACHE_STATUSES.index, default="hit")


def _request(session: Session, graph_request: GraphRequest, notice: Any = None) -> GraphResult:
    try:
        answer = ask(session, graph_request, notice)
    except LazyfxError as error:
        session.record_outcome(error)
        raise
    session.record_outcome(None)
    return answer


def _request_deferred(session: Session, graph_request: GraphRequest) -> GraphResult:
    """Ask after dynamo has continued.

    Raises:
        UnsupportedGraphError: The server wants dynamo to trace again, which is no longer possible.
        LazyfxError: See `ask`.
    """
    answer = _request(session, graph_request)
    if answer.fixed_inputs:
        raise UnsupportedGraphError(
            "a float that varies between calls must be a constant, but dynamo has already gone on",
            remedy="omit wait=False, or pass the float as a tensor",
        )
    return answer

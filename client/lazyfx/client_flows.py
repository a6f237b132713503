"""The flows of a client, which the asynchronous and the blocking client both run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

from torch.fx import GraphModule

from lazyfx.answers.refusals import Refusals
from lazyfx.artifacts.prefetched import (
    PrefetchedArtifact,
    PrefetchReceiver,
    PrefetchStream,
    UnverifiedArtifact,
)
from lazyfx.calls.conversation import CompileCaller
from lazyfx.calls.many_compiles import ManyCompiles
from lazyfx.calls.prefetch_calls import next_prefetched, open_prefetch
from lazyfx.calls.replicas import Balance, HedgeAfter, Replicas, checked_balance
from lazyfx.calls.service_calls import ServiceCalls
from lazyfx.calls.uploading import Progress
from lazyfx.capture.capturing import Compilable, ExampleInputs
from lazyfx.capture.preparing import Prepared, Preparer
from lazyfx.capture.priorities import Priority, priority_number
from lazyfx.errors import LazyfxError
from lazyfx.flows import Flow, Lock
from lazyfx.module_flows import ModuleFlows
from lazyfx.shared.addresses import server_address, split_addresses
from lazyfx.shared.answers.answer_bounds import AnswerBounds
from lazyfx.shared.answers.downloads import OnProgress
from lazyfx.shared.environment import warn_of_misspelled
from lazyfx.shared.native.prefetch_keys import remembered_compile
from lazyfx.shared.pass_specs import Modes, Passes, normalize
from lazyfx.shared.printable import make_printable, shown
from lazyfx.trust.access import Access, Tls, access
from lazyfx.trust.verifying import DATA_KINDS, Verifier
from lazyfx.v1 import compiler_pb2 as pb

Job: TypeAlias = "tuple[Compilable, Passes] | tuple[Compilable, Passes, ExampleInputs]"

_BALANCE_VARIABLE: Final = "LAZYFX_BALANCE"
_HEDGE_VARIABLE: Final = "LAZYFX_HEDGE_AFTER"


class ClientFlows:
    """The flows of one client; see `AsyncClient` for the other arguments.

    Args:
        new_lock: Creates a lock of the driver's kind.

    Attributes:
        access: Credentials to send, and keys to trust.
        bounds: Bounds on answers of the server.
        refusals: Counts refused answers.
        calls: The calls to the server.
        verifier: Checks signatures.
        preparer: Captures and encodes.
        compile_caller: Sends compile requests.
    """

    def __init__(
        self,
        new_lock: Callable[[], Lock],
        address: str | None,
        *,
        timeout: float,
        on_upload: Progress | None,
        token: str | None,
        tls: Tls | bool | None,
        verify_keys: Sequence[str] | str | None,
        answer_bounds: AnswerBounds,
        balance: str | None,
        hedge_after: HedgeAfter | None,
        priority: Priority,
    ) -> None:
        warn_of_misspelled()
        address = server_address(address)
        self._new_lock = new_lock
        self._priority = priority_number(priority)
        self.access: Access = access(token=token, tls=tls, verify_keys=verify_keys)
        self.bounds = answer_bounds
        self.refusals = Refusals(address)
        self.calls = ServiceCalls(
            Replicas(split_addresses(address), _balance(balance)),
            timeout=timeout,
            tls=self.access.tls,
            bounds=answer_bounds,
            hedge_after=_hedge_after(hedge_after),
        )
        self.verifier = Verifier(
            self.access.pinned_keys(address),
            address=address,
            untrusted=self.access.untrusted_address(address),
            ask=self.calls.server_info,
        )
        self.preparer = Preparer(answer_bounds)
        self.compile_caller = CompileCaller(self.calls, self.preparer, on_upload)

    def compile(
        self,
        what: Compilable,
        passes: Passes,
        example_inputs: ExampleInputs,
        *,
        eager: bool,
        verify: bool,
        priority: Priority | None,
        skip_cache_lookup: bool,
        timeout: float | None,
        send_values: bool,
    ) -> Flow[ModuleFlows]:
        """Capture and compile a graph; see `AsyncClient.compile`."""
        number = self._priority if priority is None else priority_number(priority)
        prepare = partial(
            self.preparer.prepare,
            what,
            normalize(passes),
            example_inputs,
            modes=Modes(eager, verify, number),
            send_values=send_values,
        )
        prepared = prepare()
        if prepared.is_unchanged is not None and not skip_cache_lookup:
            with self.refusals.counted():
                answer = yield from self.compile_caller.compile_if_unchanged(prepared, timeout)
            if answer is not None:
                return self._module(prepared, answer)
            prepared = prepare(fresh=True)
        with self.refusals.counted():
            response = yield from self.compile_caller.ask(
                prepared, timeout, skip_cache_lookup=skip_cache_lookup
            )
        return self._module(prepared, response)

    def compile_many(self, jobs: Sequence[Job], *, send_values: bool) -> ManyCompiles:
        """Capture and encode many graphs, without any I/O; see `AsyncClient.compile_many`."""
        for i, job in enumerate(jobs := list(jobs)):
            if not isinstance(job, (tuple, list)) or len(job) not in (2, 3):
                raise LazyfxError(
                    f"jobs[{i}] is a {type(job).__name__}, not a pair of what to compile and the "
                    "passes for it, or these two and example inputs: [(graph, passes), ...]"
                )
        prepared = [
            self.preparer.prepare(
                what,
                normalize(passes),
                *inputs,
                modes=Modes(priority=self._priority),
                fresh=True,
                send_values=send_values,
            )
            for what, passes, *inputs in jobs
        ]
        return ManyCompiles(self.calls, self.compile_caller, prepared)

    def next_of_many(
        self, many: ManyCompiles
    ) -> Flow[tuple[int, ModuleFlows | LazyfxError] | None]:
        """The index and handle of the next compiled graph; None after the last."""
        with self.refusals.counted():
            found = yield from many.next()
        if found is None:
            return None
        i, result = found
        if isinstance(result, LazyfxError):
            return i, result
        return i, self._module(many.prepared[i], result)

    def _module(self, prepared: Prepared, response: pb.CompileResponse) -> ModuleFlows:
        prepared = self.preparer.with_values(prepared)
        return ModuleFlows(self, prepared, response, self._new_lock)

    def passes(self) -> Flow[list[pb.PassDescription]]:
        """The passes that the server runs, by name."""
        return list((yield from self.calls.passes()).passes)

    def pipelines(self) -> Flow[dict[str, str]]:
        """The named pipelines, and the passes of each."""
        found = (yield from self.calls.passes()).pipelines
        return {pipeline.name: pipeline.spelling for pipeline in found}

    def fetch(
        self,
        request: pb.GetArtifactRequest,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Flow[tuple[bytes, pb.ArtifactTrailer]]:
        """Fetch a complete artifact and check its signature.

        Raises:
            UntrustedServerError: Artifacts of this server would not be opened; none was requested.
            UntrustedArtifactError: It is not signed with a trusted key.
            ServiceError: A subclass, by the status that the server returned.
        """
        with self.refusals.counted():
            if request.kind not in DATA_KINDS or self.verifier.has_pinned_keys:
                yield from self.verifier.require_trusted()
            data, trailer = yield from self.calls.artifact(
                request, timeout=timeout, on_progress=on_progress
            )
            yield from self.verifier.check(request, trailer)
        return data, trailer

    def asked_of(
        self,
        graph: GraphModule,
        passes: Passes,
        *,
        priority: Priority,
        send_values: bool,
    ) -> pb.CompileRequest | None:
        """What a compile of a graph would ask for, without I/O; None if it may send values."""
        modes = Modes(priority=priority_number(priority))
        prepare = partial(
            self.preparer.prepare, graph, normalize(passes), modes=modes, send_values=send_values
        )
        prepared = prepare()
        if prepared.is_unchanged is not None and not prepared.is_unchanged():
            prepared = prepare(fresh=True)
        if prepared.may_send_values:
            return None
        return remembered_compile(prepared.requests.whole)

    def prefetch(
        self, request: pb.PrefetchRequest, receiver: PrefetchReceiver, seconds: float
    ) -> Flow[None]:
        """Receive what a job asked for before; each artifact is verified.

        Raises:
            UntrustedServerError: Artifacts of this server would not be opened.
            UntrustedArtifactError: One is not signed with a trusted key.
            ServiceError: A subclass, by the status that the server returned.
        """
        with self.refusals.counted():
            self.verifier.require_trusted_connection()
            route = self.calls.replicas.route(request.jobs[0])
            stream = PrefetchStream(self.bounds, request.max_bytes)
            call = yield from open_prefetch(self.calls, request, route, seconds)
            try:
                while receiver.wants_more:
                    part = yield from next_prefetched(self.calls, call, route)
                    if part is None:
                        break
                    receiver.progressed()
                    made = stream.take(part)
                    if isinstance(made, pb.PrefetchPlan):
                        make_printable(made.server)
                        self.verifier.introduce(made.server)
                        receiver.planned(made)
                    elif made is not None:
                        receiver.arrived((yield from self._verified(made)))
                        self.calls.replicas.remember_home(made.module_key, route.place)
            finally:
                call.cancel()

    def _verified(self, made: UnverifiedArtifact) -> Flow[PrefetchedArtifact]:
        provenance = yield from self.verifier.verify_provenance(made.request, made.trailer)
        return PrefetchedArtifact(made.key, made.cache, made.data, provenance)

    def recompile(self, prepared: Prepared) -> Flow[pb.CompileResponse]:
        """Recompile a module that the server evicted."""
        self.compile_caller.forget(prepared)
        with self.refusals.counted():
            return (yield from self.compile_caller.ask(prepared))


def _balance(given: str | None) -> Balance:
    if given is not None:
        return checked_balance(given, "balance")
    if named := os.environ.get(_BALANCE_VARIABLE):
        return checked_balance(named, _BALANCE_VARIABLE)
    return "round_robin"


def _hedge_after(given: float | str | None) -> HedgeAfter | None:
    field = "hedge_after"
    if given is None:
        given, field = os.environ.get(_HEDGE_VARIABLE), _HEDGE_VARIABLE
    if given is None or given == "":
        return None
    if given == "auto":
        return "auto"
    with contextlib.suppress(TypeError, ValueError):
        if 0 < (seconds := float(given)) < float("inf"):
            return seconds
    raise LazyfxError(
        f'{field} must be a number of seconds greater than 0, or "auto", not {shown(given)}'
    )

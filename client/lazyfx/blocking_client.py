"""The blocking client."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType

from torch.fx import GraphModule
from typing_extensions import Self

from lazyfx.artifacts.prefetched import PrefetchReceiver
from lazyfx.blocking_module import RemoteModule
from lazyfx.calls.blocking_driver import BlockingDriver
from lazyfx.calls.forking import OfOneProcess
from lazyfx.calls.many_compiles import ManyCompiles
from lazyfx.calls.prefetch_calls import remember_job
from lazyfx.calls.replicas import HedgeAfter
from lazyfx.calls.uploading import Progress
from lazyfx.capture.capturing import Compilable, ExampleInputs
from lazyfx.capture.priorities import Priority
from lazyfx.client_flows import ClientFlows, Job
from lazyfx.errors import ForkedProcessError, LazyfxError
from lazyfx.shared.answers.answer_bounds import DEFAULT_BOUNDS, AnswerBounds
from lazyfx.shared.pass_specs import Passes
from lazyfx.trust.access import Tls
from lazyfx.v1 import compiler_pb2 as pb


class Client(OfOneProcess):
    """A client of one server or its replicas. Threads may share it.

    Its arguments are those of `AsyncClient`.

    Raises:
        ForkedProcessError: This process was forked after a client had been opened.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float = 120.0,
        on_upload: Progress | None = None,
        token: str | None = None,
        tls: Tls | bool | None = None,
        verify_keys: Sequence[str] | str | None = None,
        answer_bounds: AnswerBounds = DEFAULT_BOUNDS,
        balance: str | None = None,
        hedge_after: HedgeAfter | None = None,
        priority: Priority = "interactive",
    ) -> None:
        self._flows = ClientFlows(
            threading.Lock,
            address,
            timeout=timeout,
            on_upload=on_upload,
            token=token,
            tls=tls,
            verify_keys=verify_keys,
            answer_bounds=answer_bounds,
            balance=balance,
            hedge_after=hedge_after,
            priority=priority,
        )
        self._driver = BlockingDriver(self.address, self._flows.access)

    @property
    def address(self) -> str:
        """Address of the server; several are joined by commas."""
        return self._flows.calls.address

    @property
    def refused(self) -> dict[str, int]:
        """Counts of the server's answers that were refused, by the name of the error class."""
        return self._flows.refusals.counts()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A child forked within the block has nothing to close, and must exit normally.
        with contextlib.suppress(ForkedProcessError):
            self.close()

    def close(self) -> None:
        """Close the connection; pending calls in other threads raise ClosedError at once.

        Handles of this client cannot fetch anything afterwards.

        Raises:
            ForkedProcessError: The client was opened in the process that this one was forked from.
        """
        self._driver.close()

    def compile(
        self,
        what: Compilable,
        passes: Passes = (),
        example_inputs: ExampleInputs = None,
        *,
        skip_cache_lookup: bool = False,
        eager: bool = False,
        verify: bool = False,
        timeout: float | None = None,
        send_values: bool = False,
        priority: Priority | None = None,
    ) -> RemoteModule:
        """Compile a graph on the server; see `AsyncClient.compile`."""
        flow = self._flows.compile(
            what,
            passes,
            example_inputs,
            eager=eager,
            verify=verify,
            priority=priority,
            skip_cache_lookup=skip_cache_lookup,
            timeout=timeout,
            send_values=send_values,
        )
        return RemoteModule(self._driver, self._driver.run(flow))

    def compile_many(
        self, jobs: Sequence[Job], *, send_values: bool = False
    ) -> Iterator[tuple[int, RemoteModule | LazyfxError]]:
        """Compile many graphs over one stream; see `AsyncClient.compile_many`."""
        self._driver.require_open()
        return self._results(self._flows.compile_many(jobs, send_values=send_values))

    def _results(self, many: ManyCompiles) -> Iterator[tuple[int, RemoteModule | LazyfxError]]:
        with contextlib.closing(many):
            while (found := self._driver.run(self._flows.next_of_many(many))) is not None:
                i, result = found
                if isinstance(result, LazyfxError):
                    yield i, result
                else:
                    yield i, RemoteModule(self._driver, result)

    def passes(self) -> list[pb.PassDescription]:
        """The passes that the server runs, by name."""
        return self._driver.run(self._flows.passes())

    def pipelines(self) -> dict[str, str]:
        """The named pipelines, and the passes of each."""
        return self._driver.run(self._flows.pipelines())

    def server_info(self) -> pb.GetServerInfoResponse:
        """Versions, devices, limits and artifact kinds of the server."""
        return self._driver.run(self._flows.calls.server_info())

    def is_ready(self, seconds: float = 1.0) -> bool:
        """Whether a connection to the server can be established within that many seconds."""
        return self._driver.is_ready(seconds)

    def require_trusted(self) -> None:
        """Check that artifacts which can hold code would be opened; see `AsyncClient`."""
        self._driver.run(self._flows.verifier.require_trusted())

    def asked_of(
        self,
        graph: GraphModule,
        passes: Passes,
        *,
        priority: Priority = "interactive",
        send_values: bool = False,
    ) -> pb.CompileRequest | None:
        """What a compile of a graph would ask for; None if it may send values.

        Raises:
            UnsupportedGraphError: The format does not support the graph; names the node.
        """
        return self._flows.asked_of(graph, passes, priority=priority, send_values=send_values)

    def prefetch(
        self, request: pb.PrefetchRequest, receiver: PrefetchReceiver, seconds: float
    ) -> None:
        """Receive, in this thread, what a job asked for before; each artifact is verified.

        Raises:
            UntrustedServerError: Artifacts of this server would not be opened.
            UntrustedArtifactError: One is not signed with a trusted key.
            ServiceError: A subclass, by the status that the server returned.
        """
        self._driver.run(self._flows.prefetch(request, receiver, seconds))

    def remember_job(self, request: pb.RememberJobRequest, seconds: float) -> None:
        """Have the server remember what a job asked for, in one try.

        Raises:
            ServiceError: It did not.
        """
        self._driver.run(remember_job(self._flows.calls, request, seconds))

    def stats(self) -> pb.GetStatsResponse:
        """The server's ledger."""
        return self._driver.run(self._flows.calls.stats())


def connect(
    address: str | None = None,
    *,
    timeout: float = 120.0,
    on_upload: Progress | None = None,
    token: str | None = None,
    tls: Tls | bool | None = None,
    verify_keys: Sequence[str] | str | None = None,
    answer_bounds: AnswerBounds = DEFAULT_BOUNDS,
    balance: str | None = None,
    hedge_after: HedgeAfter | None = None,
    priority: Priority = "interactive",
) -> Client:
    """Connect to a server. Nothing is sent before the first call.

    The arguments are those of `AsyncClient`. Without an address, LAZYFX_ADDRESS counts, or a server
    on this machine.
    """
    return Client(
        address,
        timeout=timeout,
        on_upload=on_upload,
        token=token,
        tls=tls,
        verify_keys=verify_keys,
        answer_bounds=answer_bounds,
        balance=balance,
        hedge_after=hedge_after,
        priority=priority,
    )

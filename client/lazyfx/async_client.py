"""The asynchronous client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from types import TracebackType

from typing_extensions import Self

from lazyfx.async_module import AsyncRemoteModule
from lazyfx.calls.async_driver import AsyncDriver
from lazyfx.calls.forking import OfOneProcess
from lazyfx.calls.many_compiles import ManyCompiles
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


class AsyncClient(OfOneProcess):
    """A client of one server or its replicas, for use in one event loop.

    Args:
        address: "host:port", or "host" for port 8700; several replicas: "a:8700,b:8700", or
            one name for all of them: "dns:///name:8700". Default: LAZYFX_ADDRESS, or this machine.
        timeout: Default timeout of a call, in seconds.
        on_upload: Called with the bytes sent and the total bytes while tensors are uploaded.
        token: Bearer token, if the server requires one (LAZYFX_TOKEN, LAZYFX_TOKEN_FILE).
        tls: How to encrypt: True, or `lazyfx.Tls` with files of certificates (LAZYFX_CA, ...).
        verify_keys: Public keys in hex that artifacts must be signed with (LAZYFX_VERIFY_KEYS).
            Default: the keys that `lazyfx trust` stored for this server; otherwise the keys that
            the server publishes at first use, if it is on this machine or authenticated by TLS.
        answer_bounds: Bounds on what the server may send.
        balance: "round_robin": each compile goes to the next replica; "ring_hash": compiles of one
            graph go to the same replica, from all clients; "in_order": to the first that answers,
            e.g. a server on this node before a central one (LAZYFX_BALANCE).
        hedge_after: Seconds after which a second replica is asked too, if the first has not
            answered a compile that only names its graph; the first answer counts. "auto" for
            the 95th percentile of recent answers, None for never (LAZYFX_HEDGE_AFTER).
        priority: How urgent the requests are, among all of this caller: "interactive", "batch" or
            "prewarm". Hits never wait.

    Raises:
        ForkedProcessError: This process was forked after a client had been opened.
        AddressError: The address is not a server address.
        LazyfxError: The timeout is not a number of seconds, or a file cannot be read.
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
            asyncio.Lock,
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
        self._driver = AsyncDriver(self.address, self._flows.access)

    @property
    def address(self) -> str:
        """Address of the server; several are joined by commas."""
        return self._flows.calls.address

    @property
    def refused(self) -> dict[str, int]:
        """Counts of the server's answers that were refused, by the name of the error class."""
        return self._flows.refusals.counts()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A child forked within the block has nothing to close, and must exit normally.
        with contextlib.suppress(ForkedProcessError):
            await self.close()

    async def close(self) -> None:
        """Close the connection; pending calls in other tasks raise ClosedError.

        Raises:
            ForkedProcessError: The client was opened in the process that this one was forked from.
        """
        await self._driver.close()

    async def compile(
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
    ) -> AsyncRemoteModule:
        """Compile a graph on the server.

        Args:
            what: A GraphModule (the handle is called with the same flat inputs), an
                ExportedProgram (the handle is called as `program.module()` is), or a
                Module, which is exported with the example inputs.
            passes: Names of passes and PassSpecs, in the order in which they run; or the
                spelling of a pipeline, e.g. "inference,constant_fold{max_bytes=4096}".
            example_inputs: For a Module: a tuple of arguments or a dict of keyword arguments.
            skip_cache_lookup: Compile even if the server has a result.
            eager: Run the passes on eager modules, which recompile at once: for passes that
                cannot work with lazy modules, and for comparison.
            verify: Compare the results of the graph before and after each pass on random
                inputs, and refuse a pass that changed them.
            timeout: Timeout of this compile, in seconds.
            send_values: Send tensor values to any pass for which the server requests them. By
                default only lazyfx's own passes that read values receive them, such as
                constant_fold.
            priority: How urgent it is; that of the client by default.

        Returns:
            A handle; nothing is generated or sent until it is used.

        Raises:
            UnsupportedGraphError: The format does not support the graph; names the node.
            ServiceError: A subclass, by the status that the server returned.
            ValuesRefusedError: The server requests values that no pass of the request reads.
            LazyfxError: The graph cannot be captured, or a pass is malformed.
        """
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
        return AsyncRemoteModule(self._driver, await self._driver.run(flow))

    def compile_many(
        self, jobs: Sequence[Job], *, send_values: bool = False
    ) -> AsyncIterator[tuple[int, AsyncRemoteModule | LazyfxError]]:
        """Compile many graphs over one stream.

        They are captured immediately, under the modes of this thread.

        Args:
            jobs: What to compile, the passes for it, and for a Module its example inputs.
            send_values: As for `compile`.

        Yields:
            The index of each job and its handle or error, in the order of completion.

        Raises:
            UnsupportedGraphError: The format does not support a graph; names the node.
            LazyfxError: A graph cannot be captured, or a pass is malformed.
        """
        return self._results(self._flows.compile_many(jobs, send_values=send_values))

    async def _results(
        self, many: ManyCompiles
    ) -> AsyncIterator[tuple[int, AsyncRemoteModule | LazyfxError]]:
        with contextlib.closing(many):
            while (found := await self._driver.run(self._flows.next_of_many(many))) is not None:
                i, result = found
                if isinstance(result, LazyfxError):
                    yield i, result
                else:
                    yield i, AsyncRemoteModule(self._driver, result)

    async def passes(self) -> list[pb.PassDescription]:
        """The passes that the server runs, by name."""
        return await self._driver.run(self._flows.passes())

    async def pipelines(self) -> dict[str, str]:
        """The named pipelines, and the passes of each."""
        return await self._driver.run(self._flows.pipelines())

    async def server_info(self) -> pb.GetServerInfoResponse:
        """Versions, devices, limits and artifact kinds of the server."""
        return await self._driver.run(self._flows.calls.server_info())

    async def is_ready(self, seconds: float = 1.0) -> bool:
        """Whether a connection to the server can be established within that many seconds."""
        return await self._driver.is_ready(seconds)

    async def stats(self) -> pb.GetStatsResponse:
        """The server's ledger."""
        return await self._driver.run(self._flows.calls.stats())

    async def require_trusted(self) -> None:
        """Check that artifacts of this server that can contain code would be opened.

        Raises:
            UntrustedServerError: They would not; says how to trust the server.
            ServiceError: The server did not return its keys.
        """
        await self._driver.run(self._flows.verifier.require_trusted())


def connect_async(
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
) -> AsyncClient:
    """Connect to a server, for use in the running event loop.

    Nothing is sent before the first call. The arguments are those of `AsyncClient`.
    """
    return AsyncClient(
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

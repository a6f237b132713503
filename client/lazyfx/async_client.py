"""The asynchronous client."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TypeAlias

from typing_extensions import Self

from lazyfx.answers.answer_bounds import DEFAULT_BOUNDS, AnswerBounds
from lazyfx.answers.downloads import OnProgress
from lazyfx.answers.refusals import Refusals
from lazyfx.async_module import AsyncRemoteModule
from lazyfx.calls.connection import Connection
from lazyfx.calls.conversation import CompileCaller
from lazyfx.calls.uploading import Progress
from lazyfx.capture.capturing import Compilable, ExampleInputs
from lazyfx.capture.preparing import Prepared, Preparer
from lazyfx.errors import (
    ForkedProcessError,
    LazyfxError,
    MissingBlobsError,
    OverloadedError,
    ServerFaultError,
)
from lazyfx.shared.addresses import server_address
from lazyfx.shared.environment import warn_of_misspelled
from lazyfx.shared.grpc_status import is_from_server, status_to_error
from lazyfx.shared.pass_specs import DEFAULT_MODES, Modes, Passes, normalize
from lazyfx.trust.access import Tls, access
from lazyfx.trust.verifying import DATA_KINDS, Provenance, Verifier
from lazyfx.v1 import compiler_pb2 as pb

Job: TypeAlias = "tuple[Compilable, Passes] | tuple[Compilable, Passes, ExampleInputs]"


class AsyncClient:
    """A client of one server, for use in one event loop.

    Args:
        address: "host:port", or "host" for port 8700. Default: LAZYFX_ADDRESS, or this
            machine.
        timeout: Default timeout of a call, in seconds.
        on_upload: Called with the bytes sent and the total bytes while tensors are uploaded.
        token: Bearer token, if the server requires one (LAZYFX_TOKEN, LAZYFX_TOKEN_FILE).
        tls: How to encrypt: True, or `lazyfx.Tls` with files of certificates (LAZYFX_CA, ...).
        verify_keys: Public keys in hex that artifacts must be signed with (LAZYFX_VERIFY_KEYS).
            Default: the keys that `lazyfx trust` stored for this server; otherwise the keys that
            the server publishes at first use, if it is on this machine or authenticated by TLS.
        answer_bounds: Bounds on what the server may send.

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
    ) -> None:
        warn_of_misspelled()
        address = server_address(address)
        if not (isinstance(timeout, (int, float)) and timeout > 0):
            raise LazyfxError(
                f"timeout must be a number of seconds greater than 0, not {timeout!r}"
            )
        granted = access(token=token, tls=tls, verify_keys=verify_keys)
        self.bounds = answer_bounds
        self.refusals = Refusals(address)
        self._connection = Connection(
            address, timeout=timeout, access=granted, bounds=answer_bounds
        )
        self._verifier = Verifier(
            granted.pinned_keys(address),
            address=address,
            trusts_connection=granted.is_trusted(address),
            ask=self._connection.server_info,
        )
        self._preparer = Preparer(answer_bounds)
        self._compile_caller = CompileCaller(self._connection, self._preparer, on_upload)

    @property
    def address(self) -> str:
        """Address of the server."""
        return self._connection.address

    @property
    def refused(self) -> dict[str, int]:
        """Counts of the server's answers that were refused, by the name of the error class."""
        return self.refusals.counts()

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
        await self._connection.close()

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

        Returns:
            A handle; nothing is generated or sent until it is used.

        Raises:
            UnsupportedGraphError: The format does not support the graph; names the node.
            ServiceError: A subclass, by the status that the server returned.
            ValuesRefusedError: The server requests values that no pass of the request reads.
            LazyfxError: The graph cannot be captured, or a pass is malformed.
        """
        wanted, modes = normalize(passes), Modes(eager, verify)
        prepared = self.prepare(what, wanted, example_inputs, modes=modes, send_values=send_values)
        if prepared.is_unchanged is not None and not skip_cache_lookup:
            answer = await self.compile_if_unchanged(prepared, timeout)
            if answer is not None:
                return self.handle(prepared, answer)
            prepared = self.prepare(
                what, wanted, example_inputs, modes=modes, fresh=True, send_values=send_values
            )
        response = await self.ask(prepared, timeout, skip_cache_lookup=skip_cache_lookup)
        return self.handle(prepared, response)

    def prepare(
        self,
        what: Compilable,
        passes: Passes,
        example_inputs: ExampleInputs = None,
        *,
        modes: Modes = DEFAULT_MODES,
        fresh: bool = False,
        send_values: bool = False,
    ) -> Prepared:
        """Capture and encode, without any I/O; see `Preparer.prepare`."""
        return self._preparer.prepare(
            what, passes, example_inputs, modes=modes, fresh=fresh, send_values=send_values
        )

    def handle(self, prepared: Prepared, response: pb.CompileResponse) -> AsyncRemoteModule:
        """The handle for a response of the server."""
        return AsyncRemoteModule(self, self._preparer.with_values(prepared), response)

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
        return self.compile_prepared(self.prepare_many(jobs, send_values=send_values))

    def prepare_many(self, jobs: Sequence[Job], *, send_values: bool = False) -> list[Prepared]:
        """Capture and encode the jobs of `compile_many`, without any I/O."""
        return [self.prepare(*job, fresh=True, send_values=send_values) for job in jobs]

    async def compile_prepared(
        self, prepared: Sequence[Prepared]
    ) -> AsyncIterator[tuple[int, AsyncRemoteModule | LazyfxError]]:
        """Compile the result of `prepare_many`; see `compile_many`."""

        async def requests() -> AsyncIterator[pb.CompileBatchRequest]:
            for i in sorted(streamed):
                job = prepared[i]
                request = pb.CompileRequest()
                request.CopyFrom(job.requests.whole)
                request.graph.CopyFrom(job.encoded.message())
                yield pb.CompileBatchRequest(request_id=i, request=request)

        streamed = {i for i, job in enumerate(prepared) if job.fits_one_message}
        answers = self._connection.compile_batch(requests(), streamed)
        due = set(range(len(prepared)))
        try:
            with self.refusals.counted():
                async for answer in answers:
                    i = answer.request_id
                    due.discard(i)
                    yield i, await self._batch_result(prepared[i], answer)
        except OverloadedError as refusal:
            if refusal.retry_after is None:
                raise
        except ServerFaultError as error:
            # If a server ends a stream while the client is writing, gRPC loses its status and
            # reports an internal error instead (grpc/grpc issue 36066).
            if is_from_server(error.__cause__):
                raise
        # One by one: requests that are too large for the stream and, if the stream was refused for
        # now, all others, each after the server's retry delay.
        for i in sorted(due):
            yield i, await self._single_result(prepared[i])

    async def _batch_result(
        self, job: Prepared, answer: pb.CompileBatchResponse
    ) -> AsyncRemoteModule | LazyfxError:
        if answer.HasField("response"):
            return self.handle(job, answer.response)
        error: LazyfxError = status_to_error(answer.error)
        refused_for_now = isinstance(error, OverloadedError) and error.retry_after is not None
        if isinstance(error, MissingBlobsError) or refused_for_now:
            # Values that a pass reads are sent outside the stream, and requests refused for now are
            # retried.
            return await self._single_result(job)
        return error

    async def _single_result(self, job: Prepared) -> AsyncRemoteModule | LazyfxError:
        try:
            return self.handle(job, await self.ask(job))
        except LazyfxError as error:
            return error

    async def passes(self) -> list[pb.PassDescription]:
        """The passes that the server runs, by name."""
        return list((await self._connection.passes()).passes)

    async def pipelines(self) -> dict[str, str]:
        """The named pipelines, and the passes of each."""
        found = (await self._connection.passes()).pipelines
        return {pipeline.name: pipeline.spelling for pipeline in found}

    async def server_info(self) -> pb.GetServerInfoResponse:
        """Versions, devices, limits and artifact kinds of the server."""
        return await self._connection.server_info()

    async def is_ready(self, seconds: float = 1.0) -> bool:
        """Whether a connection to the server can be established within that many seconds."""
        return await self._connection.is_ready(seconds)

    async def stats(self) -> pb.GetStatsResponse:
        """The server's ledger."""
        return await self._connection.stats()

    async def require_trusted(self) -> None:
        """Check that artifacts of this server that can contain code would be opened.

        Raises:
            UntrustedServerError: They would not; says how to trust the server.
            ServiceError: The server did not return its keys.
        """
        await self._verifier.require_trusted()

    async def fetch(
        self,
        request: pb.GetArtifactRequest,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> tuple[bytes, pb.ArtifactTrailer]:
        """Fetch an artifact and verify its signature; handles call this.

        Raises:
            UntrustedServerError: Artifacts of this server would not be opened; none was requested.
            UntrustedArtifactError: It is not signed with a trusted key.
            ServiceError: A subclass, by the status that the server returned.
        """
        with self.refusals.counted():
            if request.kind not in DATA_KINDS or self._verifier.has_pinned_keys:
                await self._verifier.require_trusted()
            data, trailer = await self._connection.artifact(
                request, timeout=timeout, on_progress=on_progress
            )
            await self._verifier.check(request, trailer)
        return data, trailer

    async def verify_provenance(
        self, request: pb.GetArtifactRequest, trailer: pb.ArtifactTrailer
    ) -> Provenance:
        """The signed provenance of an artifact; handles call this.

        Raises:
            UntrustedArtifactError: It is not signed with a trusted key.
        """
        return await self._verifier.verify_provenance(request, trailer)

    async def recompile(self, prepared: Prepared) -> pb.CompileResponse:
        """Recompile a module that the server evicted; handles call this."""
        self._compile_caller.forget(prepared)
        return await self.ask(prepared)

    async def ask(
        self, prepared: Prepared, timeout: float | None = None, *, skip_cache_lookup: bool = False
    ) -> pb.CompileResponse:
        """Send a prepared request and supply what the server lacks; see `CompileCaller.ask`."""
        with self.refusals.counted():
            return await self._compile_caller.ask(
                prepared, timeout, skip_cache_lookup=skip_cache_lookup
            )

    async def compile_if_unchanged(
        self, prepared: Prepared, timeout: float | None = None
    ) -> pb.CompileResponse | None:
        """Compile by the cached digest; see `CompileCaller.compile_if_unchanged`."""
        with self.refusals.counted():
            return await self._compile_caller.compile_if_unchanged(prepared, timeout)


def connect_async(
    address: str | None = None,
    *,
    timeout: float = 120.0,
    on_upload: Progress | None = None,
    token: str | None = None,
    tls: Tls | bool | None = None,
    verify_keys: Sequence[str] | str | None = None,
    answer_bounds: AnswerBounds = DEFAULT_BOUNDS,
) -> AsyncClient:
    """Connect to a server, for use in the running event loop.

    Nothing is sent before the first call.

    Args:
        address: "host:port", or "host" for port 8700. Default: LAZYFX_ADDRESS, or this
            machine.
        timeout: Default timeout of a call, in seconds.
        on_upload: Called with the bytes sent and the total bytes while tensors are uploaded.
        token: Bearer token; see `AsyncClient`.
        tls: How to encrypt; see `AsyncClient`.
        verify_keys: Public keys in hex that artifacts must be signed with; see `AsyncClient`.
        answer_bounds: Bounds on what the server may send; see `AnswerBounds`.
    """
    return AsyncClient(
        address,
        timeout=timeout,
        on_upload=on_upload,
        token=token,
        tls=tls,
        verify_keys=verify_keys,
        answer_bounds=answer_bounds,
    )

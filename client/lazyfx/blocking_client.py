"""The blocking client: the same calls, on an event loop in a thread of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from typing_extensions import Self

from lazyfx.answers.answer_bounds import DEFAULT_BOUNDS, AnswerBounds
from lazyfx.async_client import AsyncClient, Job
from lazyfx.async_module import AsyncRemoteModule
from lazyfx.blocking_module import RemoteModule
from lazyfx.calls.event_loop import LoopThread
from lazyfx.calls.uploading import Progress
from lazyfx.capture.capturing import Compilable, ExampleInputs
from lazyfx.capture.preparing import Prepared
from lazyfx.errors import ForkedProcessError, LazyfxError
from lazyfx.shared.addresses import server_address
from lazyfx.shared.pass_specs import Modes, Passes, normalize
from lazyfx.trust.access import Tls
from lazyfx.v1 import compiler_pb2 as pb

Answer = TypeVar("Answer")

_CLOSE_SECONDS = 5.0


class Client:
    """A client of one server. Threads may share it.

    Args:
        address: "host:port", or "host" for port 8700. Default: LAZYFX_ADDRESS, or this
            machine.
        timeout: Default timeout of a call, in seconds.
        on_upload: Called with the bytes sent and the total bytes while tensors are uploaded.
        token: Bearer token; see `AsyncClient`.
        tls: How to encrypt; see `AsyncClient`.
        verify_keys: Public keys in hex that artifacts must be signed with; see `AsyncClient`.
        answer_bounds: Bounds on what the server may send; see `AnswerBounds`.

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
    ) -> None:
        address = server_address(address)
        self._loop = LoopThread()
        self._preparing = threading.Lock()

        async def open_client() -> AsyncClient:
            return AsyncClient(
                address,
                timeout=timeout,
                on_upload=on_upload,
                token=token,
                tls=tls,
                verify_keys=verify_keys,
                answer_bounds=answer_bounds,
            )

        self._client = self._loop.run(open_client())

    @property
    def address(self) -> str:
        """Address of the server."""
        return self._client.address

    @property
    def refused(self) -> dict[str, int]:
        """Counts of the server's answers that were refused, by the name of the error class."""
        return self._client.refused

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A child that was forked in the block has nothing to close, and leaves as it would.
        with contextlib.suppress(ForkedProcessError):
            self.close()

    def close(self) -> None:
        """Close the connection; pending calls in other threads raise ClosedError at once.

        Handles of this client cannot fetch anything afterwards. A connection that does not close
        within a few seconds is abandoned, so that the process can exit.

        Raises:
            ForkedProcessError: The client was opened in the process that this one was forked from.
        """
        if self._loop.close():
            self._loop.finish(self._client.close(), _CLOSE_SECONDS)

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
    ) -> RemoteModule:
        """Compile a graph on the server; see `AsyncClient.compile`."""
        self._loop.require_open()
        # Capturing and encoding happen in the caller's thread, whose grad mode, autocast
        # and default device they must see.
        wanted, modes = normalize(passes), Modes(eager, verify)
        with self._preparing:
            prepared = self._client.prepare(
                what, wanted, example_inputs, modes=modes, send_values=send_values
            )
        if prepared.is_unchanged is not None and not skip_cache_lookup:
            answer = self._loop.run(self._client.compile_if_unchanged(prepared, timeout))
            if answer is not None:
                return self._handle(prepared, answer)
            with self._preparing:
                prepared = self._client.prepare(
                    what,
                    wanted,
                    example_inputs,
                    modes=modes,
                    fresh=True,
                    send_values=send_values,
                )
        answer = self._loop.run(
            self._client.ask(prepared, timeout, skip_cache_lookup=skip_cache_lookup)
        )
        return self._handle(prepared, answer)

    def _handle(self, prepared: Prepared, response: pb.CompileResponse) -> RemoteModule:
        return RemoteModule(self._loop, self._client.handle(prepared, response))

    def compile_many(
        self, jobs: Sequence[Job], *, send_values: bool = False
    ) -> Iterator[tuple[int, RemoteModule | LazyfxError]]:
        """Compile many graphs over one stream; see `AsyncClient.compile_many`."""
        self._loop.require_open()
        # Captured at once and in the caller's thread, as `compile` does.
        with self._preparing:
            prepared = self._client.prepare_many(jobs, send_values=send_values)
        return self._results(prepared)

    def _results(
        self, prepared: Sequence[Prepared]
    ) -> Iterator[tuple[int, RemoteModule | LazyfxError]]:
        answers = self._client.compile_prepared(prepared)
        while (answer := self._loop.run(_next(answers))) is not None:
            i, result = answer
            if isinstance(result, AsyncRemoteModule):
                yield i, RemoteModule(self._loop, result)
            else:
                yield i, result

    def passes(self) -> list[pb.PassDescription]:
        """The passes that the server runs, by name."""
        return self._loop.run(self._client.passes())

    def pipelines(self) -> dict[str, str]:
        """The named pipelines, and the passes of each."""
        return self._loop.run(self._client.pipelines())

    def server_info(self) -> pb.GetServerInfoResponse:
        """Versions, devices, limits and artifact kinds of the server."""
        return self._loop.run(self._client.server_info())

    def is_ready(self, seconds: float = 1.0) -> bool:
        """Whether a connection to the server can be established within that many seconds."""
        return self._loop.run(self._client.is_ready(seconds))

    def require_trusted(self) -> None:
        """Check that artifacts which can hold code would be opened; see `AsyncClient`."""
        self._loop.run(self._client.require_trusted())

    def stats(self) -> pb.GetStatsResponse:
        """The server's ledger."""
        return self._loop.run(self._client.stats())


async def _next(answers: AsyncIterator[Answer]) -> Answer | None:
    return await anext(answers, None)


def connect(
    address: str | None = None,
    *,
    timeout: float = 120.0,
    on_upload: Progress | None = None,
    token: str | None = None,
    tls: Tls | bool | None = None,
    verify_keys: Sequence[str] | str | None = None,
    answer_bounds: AnswerBounds = DEFAULT_BOUNDS,
) -> Client:
    """Connect to a server. Nothing is sent before the first call.

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
    return Client(
        address,
        timeout=timeout,
        on_upload=on_upload,
        token=token,
        tls=tls,
        verify_keys=verify_keys,
        answer_bounds=answer_bounds,
    )

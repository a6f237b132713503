"""The blocking client: the same calls, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from torch.fx import GraphModule
from typing_extensions import Self

from lazyfx.access import Tls
from lazyfx.capture import Compilable, ExampleInputs
from lazyfx.client import AsyncClient
from lazyfx.errors import LazyfxError
from lazyfx.module import AsyncRemoteModule, OnProgress
from lazyfx.passes import Modes, PassSpec
from lazyfx.picture import Picture
from lazyfx.preparing import Prepared
from lazyfx.report import Cache, Report
from lazyfx.uploading import Progress
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.verifying import Provenance

Answer = TypeVar("Answer")


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="lazyfx-client", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Run a coroutine in the loop and wait for it."""
        return self.wait(self.start(work))

    def start(self, work: Coroutine[Any, Any, Answer]) -> Future[Answer]:
        """Start a coroutine in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    @staticmethod
    def wait(future: Future[Answer]) -> Answer:
        """Wait for what was started."""
        try:
            return future.result()
        except BaseException:
            # Ctrl-C while waiting: do not leave the call running behind.
            future.cancel()
            raise

    def stop(self) -> None:
        """End the thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5.0)
            self._loop.close()


class RemoteModule:
    """A compiled module on a server; nothing is generated or sent until it is touched.

    Attributes:
        key: Hex of the module's key.
        digest: Hex of the digest of the graph that was sent.
        cache: `.status` is "hit", "miss" or "joined"; `.reason` says why it was no hit.
        report: What the compile did; it follows later touches.
    """

    def __init__(self, loop: _Loop, remote: AsyncRemoteModule) -> None:
        self._loop = loop
        self._remote = remote

    def __repr__(self) -> str:
        report = self.report
        return (
            f"<RemoteModule {self.key[:12]} {self.cache.status} "
            f"nodes={report.nodes_before}->{report.nodes_after} "
            f"recompiles={report.recompiles.performed}/{report.recompiles.requested}>"
        )

    @property
    def key(self) -> str:
        """Hex of the module's key."""
        return self._remote.key

    @property
    def digest(self) -> str:
        """Hex of the digest of the graph that was sent."""
        return self._remote.digest

    @property
    def cache(self) -> Cache:
        """Hit, miss or joined, and why."""
        return self._remote.cache

    @property
    def report(self) -> Report:
        """What the compile did; recompiles include those that later touches caused."""
        return self._remote.report

    @property
    def code(self) -> str:
        """The generated Python source, in the caller's own names. See `AsyncRemoteModule.code`."""
        return self._loop.run(self._remote.code())

    def graph_module(self) -> GraphModule:
        """A new GraphModule from graph data; see `AsyncRemoteModule.graph_module`."""
        return self._loop.run(self._remote.graph_module())

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """Call the module, in this thread, with the inputs that the caller's graph takes."""
        return self._loop.run(self._remote.prepared_call())(*inputs, **kwargs)

    def picture(self) -> Picture:
        """A drawing of the graph; it shows itself in a notebook."""
        return Picture(self._loop.run(self._remote.picture()))

    def native(
        self,
        request: pb.NativeRequest,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> bytes:
        """What the server's Inductor made of it; see `AsyncRemoteModule.native`.

        `on_progress` is called in another thread.
        """
        return self._loop.run(
            self._remote.native(request, timeout=timeout, on_progress=on_progress)
        )

    def save_pickle(self, path: str | Path) -> Path:
        """Write a pickle that loads with torch alone; see `AsyncRemoteModule.pickle`."""
        return self._loop.run(self._remote.save_pickle(path))

    def save_package(self, path: str | Path) -> Path:
        """Write a torch.package archive; see `AsyncRemoteModule.package`."""
        return self._loop.run(self._remote.save_package(path))

    def provenance(self, kind: str = "graph") -> Provenance:
        """Who made an artifact, from what and when; see `AsyncRemoteModule.provenance`."""
        return self._loop.run(self._remote.provenance(kind))

    def save_torchscript(self, path: str | Path) -> Path:
        """Write a TorchScript archive; see `AsyncRemoteModule.torchscript`."""
        return self._loop.run(self._remote.save_torchscript(path))


class Client:
    """A client of one server. Threads may share it.

    Args:
        address: "host:port".
        timeout: Seconds that a call may take unless it says otherwise.
        on_upload: Called with bytes sent and bytes in all while tensors are uploaded.
        token: Bearer token; see `AsyncClient`.
        tls: How to encrypt; see `AsyncClient`.
        verify_keys: Public keys in hex that artifacts must be signed with; see `AsyncClient`.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float = 120.0,
        on_upload: Progress | None = None,
        token: str | None = None,
        tls: Tls | bool | None = None,
        verify_keys: Sequence[str] | str | None = None,
    ) -> None:
        self._loop = _Loop()
        self._preparing = threading.Lock()

        async def open_client() -> AsyncClient:
            return AsyncClient(
                address,
                timeout=timeout,
                on_upload=on_upload,
                token=token,
                tls=tls,
                verify_keys=verify_keys,
            )

        self._client = self._loop.run(open_client())

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._client.address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; handles made by this client can fetch nothing more."""
        self._loop.run(self._client.close())
        self._loop.stop()

    def compile(
        self,
        what: Compilable,
        passes: Iterable[str | PassSpec] = (),
        example_inputs: ExampleInputs = None,
        *,
        skip_cache_lookup: bool = False,
        eager: bool = False,
        verify: bool = False,
        timeout: float | None = None,
    ) -> RemoteModule:
        """Compile a graph on the server; see `AsyncClient.compile`."""
        # Capturing and encoding happen in the caller's thread, whose grad mode, autocast
        # and default device they must see.
        wanted, modes = tuple(passes), Modes(eager, verify)
        with self._preparing:
            prepared = self._client.prepare(what, wanted, example_inputs, modes=modes)
        if prepared.still_current is not None and not skip_cache_lookup:
            asked = self._loop.start(self._client.ask(prepared, timeout))
            if prepared.still_current():
                return self._handle(prepared, self._loop.wait(asked))
            asked.cancel()
            with self._preparing:
                prepared = self._client.prepare(
                    what, wanted, example_inputs, modes=modes, fresh=True
                )
        asked = self._loop.start(
            self._client.ask(prepared, timeout, skip_cache_lookup=skip_cache_lookup)
        )
        return self._handle(prepared, self._loop.wait(asked))

    def _handle(self, prepared: Prepared, response: pb.CompileResponse) -> RemoteModule:
        return RemoteModule(self._loop, self._client.handle(prepared, response))

    def compile_many(
        self, jobs: Sequence[tuple[Compilable, Sequence[str | PassSpec]]]
    ) -> Iterator[tuple[int, RemoteModule | LazyfxError]]:
        """Compile many graphs over one stream; see `AsyncClient.compile_many`."""
        answers = self._client.compile_many(jobs)
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
        """The pipelines that have names, and the passes that each stands for."""
        return self._loop.run(self._client.pipelines())

    def server_info(self) -> pb.GetServerInfoResponse:
        """Versions, devices, limits and artifact kinds of the server."""
        return self._loop.run(self._client.server_info())

    def stats(self) -> pb.GetStatsResponse:
        """The server's ledger."""
        return self._loop.run(self._client.stats())


async def _next(answers: AsyncIterator[Answer]) -> Answer | None:
    return await anext(answers, None)


def connect(
    address: str,
    *,
    timeout: float = 120.0,
    on_upload: Progress | None = None,
    token: str | None = None,
    tls: Tls | bool | None = None,
    verify_keys: Sequence[str] | str | None = None,
) -> Client:
    """Connect to a server. Nothing is sent before the first call.

    Args:
        address: "host:port".
        timeout: Seconds that a call may take unless it says otherwise.
        on_upload: Called with bytes sent and bytes in all while tensors are uploaded.
        token: Bearer token; see `AsyncClient`.
        tls: How to encrypt; see `AsyncClient`.
        verify_keys: Public keys in hex that artifacts must be signed with; see `AsyncClient`.
    """
    return Client(
        address, timeout=timeout, on_upload=on_upload, token=token, tls=tls, verify_keys=verify_keys
    )

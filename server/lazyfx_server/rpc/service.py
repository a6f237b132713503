"""The compile service: decode, one call, encode."""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import grpc
import grpc.aio
import torch

from lazyfx.shared.format_version import READ_VERSIONS
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1.compiler_pb2_grpc import GraphCompilerServicer
from lazyfx_server.compiling.artifacts import Artifacts
from lazyfx_server.compiling.blobs.intake import Blobs
from lazyfx_server.compiling.compile import Compiler
from lazyfx_server.compiling.forwarding.forwarding import Forwarding
from lazyfx_server.compiling.prefetching.prefetching import Prefetching
from lazyfx_server.compiling.server_ledger import ServerLedger
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import MissingInputsError, TimedOutError
from lazyfx_server.jobs.artifact_kinds import ARTIFACT_KINDS, is_native
from lazyfx_server.jobs.native.progress import made_progress
from lazyfx_server.passes import PassDescription, Registry
from lazyfx_server.passes.named_pipelines import NamedPipelines
from lazyfx_server.rpc.artifact_streams import artifact_parts, prefetched_parts
from lazyfx_server.rpc.authentication import Identification
from lazyfx_server.rpc.call_log import log_failure
from lazyfx_server.rpc.caller import Caller, caller_name, current_caller
from lazyfx_server.rpc.calls_in_progress import Context, forget_frames
from lazyfx_server.rpc.error_statuses import CODE_NAMES, status_of
from lazyfx_server.rpc.pacing import RefusalPacing
from lazyfx_server.rpc.request_decoding import Decoder, request_id
from lazyfx_server.security import allowed
from lazyfx_server.security.signing import Signer
from lazyfx_server.settings.limits import CallLimits
from lazyfx_server.store import StoreStats

# How often a caller gets the progress of a native artifact.
PROGRESS_SECONDS = 0.5
_INVALID_ARGUMENT: Final[int] = grpc.StatusCode.INVALID_ARGUMENT.value[0]


@dataclass(frozen=True)
class ServerFacts:
    """What GetServerInfo returns about the server's configuration.

    Attributes:
        workers: Worker processes.
        limits: All bounds.
        devices: Devices that workers see, queried each time.
        signer: Has the public keys.
        native: The target machines of native artifacts; empty if none are built.
        identification: How callers are identified.
        sandbox: How workers are confined.
        native_status: How native compiles are confined, or why they are unavailable.
        upstream: Asks the upstream; None without one.
    """

    workers: Callable[[], int]
    limits: Sequence[pb.Limit]
    devices: Callable[[], Sequence[pb.DeviceInfo]]
    signer: Signer
    native: Callable[[], Sequence[pb.NativeTarget]]
    identification: Identification
    sandbox: Callable[[], pb.SandboxStatus]
    native_status: Callable[[], pb.NativeStatus]
    upstream: Forwarding | None = None

    async def native_targets(self) -> Sequence[pb.NativeTarget]:
        """Where native artifacts run: those of the upstream first, while it builds any."""
        theirs = () if self.upstream is None else await self.upstream.native_targets()
        return [*theirs, *self.native()]

    def verify_keys(self) -> list[pb.VerifyKey]:
        """The keys that sign artifacts; those of the upstream first, whose artifacts are passed on.

        So a caller who knows only the upstream's key finds it where a server names the key in use.
        """
        theirs = [] if self.upstream is None else self.upstream.keys.verify_keys
        return [*theirs, *self.signer.verify_keys]


class GraphCompilerService(GraphCompilerServicer):
    """Adapts `compiling` to `lazyfx.v1.GraphCompiler`."""

    def __init__(
        self,
        *,
        compiler: Compiler,
        artifacts: Artifacts,
        prefetching: Prefetching,
        blobs: Blobs,
        ledger: ServerLedger,
        settle: Callable[[], None],
        registry: Registry,
        named: NamedPipelines,
        limits: CallLimits,
        decoder: Decoder,
        facts: ServerFacts,
        pacing: RefusalPacing,
        store_stats: Callable[[], StoreStats],
    ) -> None:
        self._compiler = compiler
        self._artifacts = artifacts
        self._prefetching = prefetching
        self._blobs = blobs
        self._ledger = ledger
        self._settle = settle
        self._registry = registry
        self._named = named
        self._limits = limits
        self._decoder = decoder
        self._facts = facts
        self._pacing = pacing
        self._store_stats = store_stats
        self._started = time.monotonic()

    # Requests are bytes: see `Decoder`. The stubs expect other types.

    # A compiled module's answer is the bytes of a CompileResponse: see `CompiledModule.hit`.

    async def Compile(self, request: Any, context: Context) -> Any:
        """See compiler.proto."""
        tenant = current_caller().tenant
        async with self._decoder.reading("Compile", request, tenant) as incoming:
            return await self._compiler.compile(incoming, tenant, context.time_remaining)

    async def CompileBatch(
        self, request_iterator: Any, context: Context
    ) -> AsyncIterator[pb.CompileBatchResponse]:
        """See compiler.proto."""
        under_way: set[asyncio.Task[pb.CompileBatchResponse]] = set()
        reading = asyncio.ensure_future(anext(request_iterator, None))
        open_ended = True
        try:
            while open_ended or under_way:
                full = len(under_way) >= self._limits.max_batch_in_flight
                waiting = [*under_way, *([reading] if open_ended and not full else [])]
                idle = None if under_way else self._limits.stream_idle_timeout
                done, _ = await asyncio.wait(
                    waiting, timeout=idle, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    raise TimedOutError(
                        f"no request arrived for {idle:g} s (setting stream_idle_timeout)"
                    )
                if open_ended and reading.done():
                    if (request := reading.result()) is None:
                        open_ended = False
                    else:
                        under_way.add(asyncio.ensure_future(self._one_of_batch(request, context)))
                        reading = asyncio.ensure_future(anext(request_iterator, None))
                for task in [task for task in under_way if task.done()]:
                    under_way.discard(task)
                    yield task.result()
        finally:
            reading.cancel()
            for task in under_way:
                task.cancel()

    async def _one_of_batch(self, request: bytes, context: Context) -> pb.CompileBatchResponse:
        response = pb.CompileBatchResponse(request_id=request_id(request))
        started, size = time.perf_counter(), len(request)
        try:
            caller = current_caller()
            caller.charge_batched(size)
            async with self._decoder.reading("CompileBatch", request, caller.tenant) as incoming:
                answer = await self._compiler.compile(
                    incoming, caller.tenant, context.time_remaining
                )
                response.response.MergeFromString(answer)
        except Exception as error:  # noqa: BLE001 - one failed request does not end the stream
            response.error.CopyFrom(status_of(error))
            forget_frames(error)
            if not isinstance(error, MissingInputsError):
                log_failure(
                    str(response.request_id),
                    "CompileBatch",
                    CODE_NAMES[response.error.code],
                    time.perf_counter() - started,
                    caller_name(),
                    response.error.message,
                )
        if response.error.code == _INVALID_ARGUMENT:
            # As the interceptor does for calls; the batch reads no more while too many wait.
            del request
            await self._pacing.wait(context.peer(), size)
        return response

    async def GetArtifact(
        self, request: Any, context: Context
    ) -> AsyncIterator[pb.GetArtifactResponse]:
        """See compiler.proto."""
        tenant = current_caller().tenant
        async with self._decoder.reading("GetArtifact", request, tenant) as message:
            async for part in self._artifact(message, tenant, context.time_remaining):
                yield part

    async def _artifact(
        self,
        request: pb.GetArtifactRequest,
        tenant: Tenant,
        time_left: Callable[[], float | None],
    ) -> AsyncIterator[pb.GetArtifactResponse]:
        finding = asyncio.ensure_future(self._artifacts.get(request, tenant, time_left))
        try:
            if is_native(request.kind):
                while not (await asyncio.wait({finding}, timeout=PROGRESS_SECONDS))[0]:
                    progress = self._artifacts.progress(request, tenant)
                    yield pb.GetArtifactResponse(progress=progress)
            artifact = await finding
        finally:
            # The work belongs to all waiters, and continues.
            finding.cancel()
        if artifact.kernels is not None:
            yield pb.GetArtifactResponse(
                progress=made_progress(artifact.kernels, artifact.render_seconds)
            )
        for part in artifact_parts(artifact, request.offset):
            yield part

    async def Prefetch(self, request: Any, context: Context) -> AsyncIterator[pb.PrefetchResponse]:
        """See compiler.proto."""
        caller = current_caller()
        async with self._decoder.reading("Prefetch", request, caller.tenant) as message:
            server = await self._describe_server()
            async for part in prefetched_parts(self._prefetching, message, caller, server):
                yield part

    async def RememberJob(self, request: Any, context: Context) -> pb.RememberJobResponse:
        """See compiler.proto."""
        tenant = current_caller().tenant
        async with self._decoder.reading("RememberJob", request, tenant) as message:
            await self._prefetching.memory.remember(message, tenant)
        return pb.RememberJobResponse()

    async def FindMissingBlobs(self, request: Any, context: Context) -> pb.FindMissingBlobsResponse:
        """See compiler.proto."""
        tenant = current_caller().tenant
        async with self._decoder.reading("FindMissingBlobs", request, tenant) as message:
            missing = await self._blobs.missing(message.digests, tenant)
        return pb.FindMissingBlobsResponse(
            missing=[digest for digest, _ in missing], received=[size for _, size in missing]
        )

    async def UploadBlobs(self, request_iterator: Any, context: Context) -> pb.UploadBlobsResponse:
        """See compiler.proto."""
        caller = current_caller()
        # Close it at once, so that the bytes of a refused chunk no longer count.
        async with aclosing(self._chunks(request_iterator, caller)) as chunks:
            stored, stored_bytes = await self._blobs.upload(chunks, caller.tenant)
        return pb.UploadBlobsResponse(stored=stored, stored_bytes=stored_bytes)

    async def _chunks(
        self, chunks: AsyncIterator[bytes], caller: Caller
    ) -> AsyncGenerator[pb.UploadBlobsRequest]:
        async for data in chunks:
            async with self._decoder.reading("UploadBlobs", data, caller.tenant) as chunk:
                caller.charge_chunk(len(chunk.data))
                yield chunk

    async def ListPasses(self, request: Any, context: Context) -> pb.ListPassesResponse:
        """See compiler.proto."""
        await self._read_empty("ListPasses", request)
        return pb.ListPassesResponse(
            passes=[_described(description) for description in self._registry.describe()],
            pipelines=self._named.describe(),
        )

    async def GetServerInfo(self, request: Any, context: Context) -> pb.GetServerInfoResponse:
        """See compiler.proto."""
        await self._read_empty("GetServerInfo", request)
        return await self._describe_server()

    async def _describe_server(self) -> pb.GetServerInfoResponse:
        targets = await self._facts.native_targets()
        response = pb.GetServerInfoResponse(
            lazyfx_version=version("lazyfx"),
            torch_version=torch.__version__,
            python_version=platform.python_version(),
            grpc_version=grpc.__version__,
            format_versions=sorted(READ_VERSIONS),
            devices=self._facts.devices(),
            limits=self._facts.limits,
            artifact_kinds=sorted(ARTIFACT_KINDS),
            workers=self._facts.workers(),
            native=targets[0] if targets else None,
            native_targets=targets,
            verify_keys=self._facts.verify_keys(),
            builder=self._facts.signer.builder,
            identification=self._facts.identification,
            sandbox=self._facts.sandbox(),
            native_status=self._facts.native_status(),
            added_targets=allowed.user_target_names()[:-1],
        )
        response.uptime.FromMilliseconds(int((time.monotonic() - self._started) * 1000))
        return response

    async def GetStats(self, request: Any, context: Context) -> pb.GetStatsResponse:
        """See compiler.proto."""
        await self._read_empty("GetStats", request)
        self._settle()
        return self._ledger.stats(self._store_stats(), current_caller().tenant.name)

    async def _read_empty(self, method: str, request: bytes) -> None:
        """Refuse a large request of a method whose request is empty."""
        async with self._decoder.reading(method, request, current_caller().tenant):
            pass


def _described(description: PassDescription) -> pb.PassDescription:
    return pb.PassDescription(
        name=description.name,
        summary=description.summary,
        version=description.version,
        needs_values=description.needs_values,
        needs_shapes=description.needs_shapes,
        mutates=description.mutates,
        origin=description.origin or f"lazyfx {version('lazyfx')}",
        options=[
            pb.PassOptionDescription(
                name=option.name,
                type=option.type,
                default_value=option.default_value,
                summary=option.summary,
            )
            for option in description.options
        ],
    )

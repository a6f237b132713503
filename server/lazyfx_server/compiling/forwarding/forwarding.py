"""Asks the upstream server for compiles and artifacts before they are made here."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from cachetools import LRUCache
from google.protobuf.message import DecodeError as ProtobufError

from lazyfx.errors import LazyfxError, MissingBlobsError, PreconditionError
from lazyfx.shared.answers.responses import check_response
from lazyfx.shared.format_version import FORMAT_VERSION
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.dispatch.result_checks import check_compile_result
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.forwarding.answers import meaning_of, names_pipeline, of_what_is_needed
from lazyfx_server.compiling.forwarding.downloading import BOUNDS, Downloads, OnProgress
from lazyfx_server.compiling.forwarding.link import UpstreamLink
from lazyfx_server.compiling.forwarding.uploading_blobs import Buffer, ReadBlob, upload_missing
from lazyfx_server.compiling.forwarding.upstream_calls import (
    NOT_IN_USE,
    UpstreamCalls,
    UpstreamFailureError,
)
from lazyfx_server.compiling.forwarding.upstream_keys import UpstreamKeys
from lazyfx_server.compiling.limits.admission import Admission, QueuedJob
from lazyfx_server.compiling.limits.cost_estimates import JobKind
from lazyfx_server.compiling.request import ResolvedRequest
from lazyfx_server.errors import OverloadedError, RequestError, UnavailableError
from lazyfx_server.settings.limits import PassLimits
from lazyfx_server.telemetry import Observer, UpstreamAsked, UpstreamOutcome, UpstreamQuestion
from lazyfx_server.telemetry.outages import Outages
from lazyfx_server.telemetry.plain_text import escaped
from lazyfx_server.v1 import worker_pb2 as worker

# A larger graph is sent only if the upstream asks for it, as clients do.
_INLINE_BYTES: Final = 100_000
# The graph, then values, then what was evicted in between.
_MAX_ROUNDS: Final = 4
_MAX_FOREIGN: Final = 1024
# Kinds of machine for which an upstream builds native artifacts.
_MAX_TARGETS: Final = 64

T = TypeVar("T")


@dataclass(frozen=True)
class ForwardedCompile:
    """What the upstream compiled, checked as the result of a worker is.

    Attributes:
        cache: Whether it had the module.
        result: Graph, report and constants.
        origin: Its key of the module, and its signatures.
    """

    cache: pb.CacheResult
    result: worker.CompileResult
    origin: worker.UpstreamModule


class _Ended:
    """How asking the upstream has ended."""

    def __init__(self) -> None:
        self.outcome: UpstreamOutcome = "left"
        self.failure: UpstreamFailureError | None = None

    def __call__(self, outcome: UpstreamOutcome) -> None:
        self.outcome = outcome


class Forwarding:
    """Asks the upstream.

    Args:
        calls: The calls to it.
        link: Whether it is asked at present.
        keys: The keys that may sign its artifacts.
        jobs: Checks graphs in worker processes.
        admission: Bounds that work.
        observer: Told how each request ended.
        limits: Bounds on graphs.
    """

    def __init__(
        self,
        *,
        calls: UpstreamCalls,
        link: UpstreamLink,
        keys: UpstreamKeys,
        jobs: Jobs,
        admission: Admission,
        observer: Observer,
        limits: PassLimits,
    ) -> None:
        self._calls = calls
        self._link = link
        self.keys = keys
        self._jobs = jobs
        self._admission = admission
        self._observer = observer
        self._limits = limits
        self._downloads = Downloads(calls, keys, self._learn)
        self._outages = Outages()
        self._described = 0
        self._describing = asyncio.Lock()
        self._native: Sequence[pb.NativeTarget] = ()
        # Pipelines that the upstream would run otherwise, with the generation of the link.
        self._foreign: LRUCache[bytes, int] = LRUCache(_MAX_FOREIGN)

    @property
    def in_use(self) -> bool:
        """Whether the upstream is asked at present."""
        return self._link.in_use

    async def start(self) -> None:
        """Look whether the upstream is there; it need not be."""
        await self._link.connect()

    async def close(self) -> None:
        """Stop asking."""
        await self._link.close()
        await self._calls.close()

    async def native_targets(self) -> Sequence[pb.NativeTarget]:
        """Where native artifacts of the upstream run; none if it builds none, or is away."""
        try:
            await self._link.ask(self._describe())
        except (LazyfxError, UpstreamFailureError):
            return ()
        return self._native

    async def compile(
        self,
        resolved: ResolvedRequest,
        request: pb.CompileRequest,
        passes: Sequence[pb.PassSpec],
        body: Buffer,
        read: ReadBlob,
    ) -> ForwardedCompile | None:
        """Have the upstream compile a request whose blobs are all here.

        Args:
            resolved: What is requested.
            request: The caller's request.
            passes: Its passes, with named pipelines replaced by theirs.
            body: The body of its graph; empty if the request has none.
            read: Reads a blob of the caller by SHA-256.

        Returns:
            None if the upstream cannot serve it.

        Raises:
            RequestError: The upstream refuses the caller.
        """
        if self._foreign.get(resolved.pipeline.fingerprint) == self._link.generation:
            return None
        forwarded = pb.CompileRequest(
            graph_digest=request.graph_digest,
            passes=passes,
            values=request.values,
            skip_cache_lookup=request.skip_cache_lookup,
            eager=request.eager,
            verify=request.verify,
            priority=request.priority,
            expected=pb.Fingerprints(
                pipeline=resolved.key.pipeline, environment=resolved.key.environment
            ),
        )
        return await self._ask("compile", self._compile(resolved, forwarded, body, read))

    async def artifact(
        self,
        request: pb.GetArtifactRequest,
        pipeline: str,
        on_progress: OnProgress | None = None,
        *,
        is_needed: bool = False,
    ) -> tuple[bytes, pb.ArtifactSignature] | None:
        """Fetch an artifact of a module that the upstream compiled.

        Args:
            request: Names it.
            pipeline: What was compiled.
            on_progress: Called with the progress of a native compile.
            is_needed: This server cannot make it itself.

        Returns:
            Its bytes and the upstream's signature; None if the upstream cannot serve it. One that
            is needed is None only if the upstream says that it has no such module.

        Raises:
            UnavailableError: One that is needed cannot be had now.
            FailedPreconditionError: One that is needed cannot be had.
            RequestError: The upstream refuses the caller.
        """
        forwarded = pb.GetArtifactRequest()
        forwarded.CopyFrom(request)
        forwarded.ClearField("offset")
        work = self._artifact(forwarded, pipeline, on_progress)
        return await self._ask("artifact", work, is_needed=is_needed)

    async def _artifact(
        self, request: pb.GetArtifactRequest, pipeline: str, on_progress: OnProgress | None
    ) -> tuple[bytes, pb.ArtifactSignature]:
        await self._describe()
        return await self._downloads.artifact(request, pipeline, on_progress)

    async def _ask(
        self, what: UpstreamQuestion, work: Coroutine[Any, Any, T], *, is_needed: bool = False
    ) -> T | None:
        """What the upstream answers; None if it cannot serve this, which is counted and logged."""
        if not self._link.in_use:
            work.close()
            if is_needed:
                raise of_what_is_needed(NOT_IN_USE)
            return None
        answer: T | None = None
        with self._counted(what) as ended:
            try:
                answer = await self._link.ask(work)
            except RequestError:
                raise
            except LazyfxError as error:
                own = self._calls.forwards_callers
                raise meaning_of(error, forwards_callers=own) from error
            ended("answered")
            self._outages.recovered(f"upstream: {what}")
        failure = ended.failure
        if is_needed and failure is not None and not failure.not_found:
            raise of_what_is_needed(failure) from failure
        return answer

    @contextmanager
    def _counted(self, what: UpstreamQuestion) -> Iterator[_Ended]:
        ended = _Ended()
        try:
            yield ended
        except UpstreamFailureError as failure:
            ended(failure.outcome)
            ended.failure = failure
            if failure.outcome == "unreachable" or failure.pause:
                self._link.give_up(str(failure), failure.pause)
            elif failure.outcome != "values":
                self._outages.failed(f"upstream: {what}", failure)
        except RequestError:
            ended("refused")
            raise
        finally:
            self._observer.observe(UpstreamAsked(what, ended.outcome))

    async def _describe(self) -> None:
        """Learn the keys of the upstream, once each time that it comes back."""
        async with self._describing:
            generation = self._link.generation
            if self._described == generation:
                return
            await self._learn(is_new_connection=True)
            self._described = generation

    async def _learn(self, *, is_new_connection: bool = False) -> None:
        info = await self._calls.server_info()
        self.keys.learn(info, is_new_connection=is_new_connection)
        self._native = info.native_targets[:_MAX_TARGETS]

    async def _compile(
        self,
        resolved: ResolvedRequest,
        request: pb.CompileRequest,
        body: Buffer,
        read: ReadBlob,
    ) -> ForwardedCompile:
        await self._describe()
        pipeline = escaped(resolved.pipeline.spelling)
        try:
            response = await self._converse(request, body, read)
        except PreconditionError as error:
            if names_pipeline(error):
                self._foreign[resolved.pipeline.fingerprint] = self._link.generation
            raise
        check_response(response, BOUNDS)
        key = response.module_key
        wanted = pb.GetArtifactRequest(module_key=key, kind=pb.ARTIFACT_KIND_GRAPH)
        data, signed = await self._downloads.artifact(wanted, pipeline)
        origin = worker.UpstreamModule(module_key=key, graph=signed)
        result = worker.CompileResult(report=response.report)
        try:
            result.graph.ParseFromString(data)
        except (ProtobufError, UnicodeDecodeError, RecursionError) as error:
            raise UpstreamFailureError("it sent no graph", "invalid") from error
        for digest in response.constants:
            wanted = pb.GetArtifactRequest(
                module_key=key, kind=pb.ARTIFACT_KIND_CONSTANT, constant=digest
            )
            data, signed = await self._downloads.artifact(wanted, pipeline)
            result.constants.add(digest=digest, data=data)
            origin.constants.append(signed)
        await self._check(result, pipeline, resolved)
        return ForwardedCompile(response.cache, result, origin)

    async def _converse(
        self, request: pb.CompileRequest, body: Buffer, read: ReadBlob
    ) -> pb.CompileResponse:
        """The answer, after the upstream has got what it lacks."""
        sizes = {v.content.sha256: v.content.size_bytes for v in request.values}
        sha256 = request.graph_digest.sha256
        sent = pb.CompileRequest()
        sent.CopyFrom(request)
        if 0 < len(body) <= _INLINE_BYTES:
            sent.graph.format_version = FORMAT_VERSION
            sent.graph.body = bytes(body)

        async def read_any(digest: bytes) -> Buffer | None:
            return body if digest == sha256 and len(body) else await read(digest)

        for _ in range(_MAX_ROUNDS):
            try:
                return await self._calls.compile(sent)
            except MissingBlobsError as error:
                if all(subject.startswith("values/") for subject in error.subjects):
                    # The caller is asked for those that a pass really reads: by this server.
                    raise UpstreamFailureError("it lacks values of tensors", "values") from error
                if f"blobs/{sha256.hex()}" in error.subjects:
                    whole = await read_any(sha256)
                    sizes[sha256] = 0 if whole is None else len(whole)
                await upload_missing(self._calls, error.subjects, sizes, read_any)
        raise UpstreamFailureError("it repeatedly asks for what it was sent", "failed")

    async def _check(
        self, result: worker.CompileResult, pipeline: str, resolved: ResolvedRequest
    ) -> None:
        """Check a graph as hostile bytes: here its form, and in a worker all that it contains."""
        try:
            await check_compile_result(result)
            if result.report.pipeline != pipeline:
                raise UpstreamFailureError("it reports other passes than requested", "invalid")
            job = worker.CheckJob(
                graph=result.graph, limits=worker.JobLimits(**dict(PassLimits.of(self._limits)))
            )
            kind = JobKind(b"check" + resolved.digest, b"check", len(result.graph.graph.body))
            async with self._admission.slot(QueuedJob(resolved.tenant.name, kind)):
                await self._jobs.check(job)
        except (OverloadedError, UnavailableError):  # this server's own
            raise
        except RequestError as error:
            raise UpstreamFailureError(f"its answer was refused: {error}", "invalid") from error

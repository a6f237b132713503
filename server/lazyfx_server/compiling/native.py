"""Native artifacts: which one a request means, whether it can be made here, and how far it is."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import tempfile
from pathlib import Path

from lazyfx.native.requests import conditions_digest
from lazyfx.native.target import mismatch
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.admission import Admission
from lazyfx_server.compiling.jobs import Jobs
from lazyfx_server.errors import InvalidRequestError, RequestError, UnmetError
from lazyfx_server.native.progress import read_progress
from lazyfx_server.telemetry import NativeCompiled, Observer
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)


class NativeCompiles:
    """Runs native compiles in workers of their own.

    Args:
        jobs: Sends jobs to native workers; None when the server was started without them.
        admission: Bounds that work.
        compile_threads: C++ compilers that one job may run at a time.
        observer: Is told of each compile.
    """

    def __init__(
        self,
        jobs: Jobs | None,
        admission: Admission,
        compile_threads: int,
        observer: Observer,
    ) -> None:
        self._jobs = jobs
        self._observer = observer
        self._admission = admission
        self._compile_threads = compile_threads
        self._why_not = "this server makes no native artifacts; start it with --native"
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.target: pb.NativeTarget | None = None

    async def start(self) -> None:
        """Find out where artifacts of this machine run, which takes a compiler some seconds."""
        if self._jobs is None:
            return
        self._folder = tempfile.TemporaryDirectory(
            prefix="lazyfx-native-", ignore_cleanup_errors=True
        )
        try:
            described = await self._jobs.describe_native(
                worker.DescribeNativeJob(cache=self._folder.name)
            )
        except RequestError as error:
            self._why_not = f"this server cannot make native artifacts: {error}"
            _log.error("%s", self._why_not)
        else:
            self.target = described.target

    def close(self) -> None:
        """Remove what compilers kept."""
        if self._folder is not None:
            self._folder.cleanup()

    def variant(self, request: pb.GetArtifactRequest) -> bytes:
        """What tells native artifacts of one module apart, 32 bytes.

        Machines that run what is made here share an artifact, whatever else they can do.

        Raises:
            InvalidRequestError: The request does not say where the artifact will run.
            UnmetError: What is made here does not run there; says why.
        """
        if not request.HasField("native"):
            raise InvalidRequestError.of_field(
                "native", "is missing; say where the artifact will run and under which settings"
            )
        if self.target is None:
            raise UnmetError(self._why_not)
        wanted = request.native.target
        if why := mismatch(self.target, wanted):
            raise UnmetError(f"a native artifact of this server would not run there: {why}")
        made = pb.NativeTarget()
        made.CopyFrom(self.target)
        made.accelerator = wanted.accelerator
        digest = hashlib.sha256(made.SerializeToString(deterministic=True))
        digest.update(conditions_digest(request.native))
        return digest.digest()

    async def make(
        self,
        place: bytes,
        graph: graph_pb2.CompiledGraph,
        request: pb.GetArtifactRequest,
        tenant: str,
    ) -> worker.NativeResult:
        """Make one artifact.

        Args:
            place: Names the artifact.
            graph: The compiled graph.
            request: Checked by `variant`.
            tenant: Whose it is, to be fair between them.

        Raises:
            RequestError: One of its kinds, by what the worker answered.
        """
        assert self._jobs is not None, "variant refuses before"
        job = worker.NativeJob(
            kind=request.kind,
            graph=graph,
            request=request.native,
            cache=str(self._folder_of(place)),
            progress=str(self._progress_file(place)),
            compile_threads=self._compile_threads,
            headers=str(self._root / "headers"),
            made_on=self.target,
        )
        self._folder_of(place).mkdir(mode=0o700, exist_ok=True)
        ended = "failed"
        try:
            async with self._admission.slot(tenant):
                result = await self._jobs.native(job)
            ended = "only_traced" if result.only_traced else "made"
            return result
        finally:
            self._observer.observe(NativeCompiled(ended))
            # Also what a job that was killed has left behind.
            await asyncio.to_thread(shutil.rmtree, self._folder_of(place), ignore_errors=True)

    def progress(self, place: bytes) -> pb.ArtifactProgress:
        """How far the making of an artifact is."""
        return read_progress(self._progress_file(place))

    @property
    def _root(self) -> Path:
        assert self._folder is not None, "started"
        return Path(self._folder.name)

    def _folder_of(self, place: bytes) -> Path:
        return self._root / f"job-{place.hex()}"

    def _progress_file(self, place: bytes) -> Path:
        return self._folder_of(place) / "progress"

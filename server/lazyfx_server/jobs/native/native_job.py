"""The job function of a native worker: one job, bytes in, bytes out; then the process exits."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import torch

from lazyfx.errors import DecodeError, LazyfxError
from lazyfx.shared.native import machine, torch_inductor
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.jobs.native.conditions import CannotCompile
from lazyfx_server.jobs.native.confinement import Confinement
from lazyfx_server.jobs.native.making import make_artifact
from lazyfx_server.jobs.native.toolchain.compiler import Compiler
from lazyfx_server.jobs.native.toolchain.subprocess_hooks import (
    UnsupportedCommand,
    redirect_compiles,
)
from lazyfx_server.jobs.native.toolchain.usual_build import usual_build
from lazyfx_server.security.native_source import NativeSourceRefused
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)


def run_native_job(compiler: Compiler, confinement: Confinement, data: bytes) -> bytes:
    """Run one serialized Job and return a serialized JobResult.

    Every exception becomes a JobError, except a sandbox that cannot be entered.

    Raises:
        SandboxError: The process could not be confined.
    """
    job = worker.Job.FromString(data)
    result = worker.JobResult()
    native = job.HasField("native")
    folder = job.native.cache if native else job.describe_native.cache
    _keep_to(Path(folder))
    confinement.enter(Path(folder))
    try:
        redirect_compiles(compiler, Path(folder))
        if native:
            result.native.CopyFrom(make_artifact(job.native))
        else:
            result.describe_native.target.CopyFrom(_describe())
            build = usual_build(compiler, Path(folder))
            result.describe_native.usual_build.CopyFrom(build)
    except CannotCompile as error:
        result.error.kind = worker.JOB_ERROR_KIND_PRECONDITION
        result.error.message = str(error)
        if UnsupportedCommand.first:
            result.error.kind = worker.JOB_ERROR_KIND_SOURCE
            result.error.message = UnsupportedCommand.first
    except NativeSourceRefused as error:
        _log.error("generated native source was refused: %s", error)
        result.error.kind = worker.JOB_ERROR_KIND_SOURCE
        result.error.message = (
            "Inductor's source for this graph contains something that Inductor does not usually "
            "write, so it was not compiled; please report this, with the graph"
        )
    except DecodeError as error:
        result.error.kind = worker.JOB_ERROR_KIND_INTERNAL
        result.error.message = f"the compiled graph cannot be read: {error}"
    except LazyfxError as error:
        result.error.kind = worker.JOB_ERROR_KIND_INVALID
        result.error.field = "native"
        result.error.message = str(error)
    except Exception as error:  # noqa: BLE001 - an answer must go back whatever happened
        _log.exception("a native job failed")
        result.error.kind = worker.JOB_ERROR_KIND_INTERNAL
        result.error.message = f"{type(error).__name__} in the native worker"
    return result.SerializeToString()


def _keep_to(folder: Path) -> None:
    """Make this process write all its files to this folder."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = str(folder)
    # Inductor's own process pool would fork.
    os.environ["TORCH_WARM_POOL"] = "0"


def _describe() -> pb.NativeTarget:
    """The target machine of this worker's artifacts; compiles and loads a probe to determine it.

    Raises:
        CannotCompile: There is no working C++ compiler.
    """
    isa = torch_inductor.pick_vec_isa()
    likely = machine.likely_vector_isa()
    picked = str(isa) if isa else ""
    if likely and not picked:
        raise CannotCompile(
            f"this CPU has {likely}, and no C++ compiler here can build a library that uses it; "
            "install g++, or start without --native"
        )
    cuda = machine.cuda_description(0) if torch.cuda.is_available() else ""
    return machine.describe_host(vector_isa=picked, accelerator=cuda)

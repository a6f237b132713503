"""A native job in this process, up to the C++ compiler: what Inductor writes, and what it says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._inductor import codecache

from lazyfx.errors import LazyfxError
from lazyfx.shared.native.kernels import bound_arguments
from lazyfx.shared.native.native_request import native_request
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.jobs.native import source_checks as sources
from lazyfx_server.jobs.native.conditions import CannotCompile
from lazyfx_server.jobs.native.making import make_artifact
from lazyfx_server.jobs.native.toolchain.torch_inductor_kernels import _Built
from lazyfx_server.security.native_source import NativeSourceRefused, check_cpp, check_wrapper
from lazyfx_server.v1 import worker_pb2 as worker


class _Stopped(Exception):
    """AOTInductor has written its sources."""


@dataclass
class Lowered:
    """What came of a job.

    Attributes:
        sources: What was written, C++ and Python, as it was checked.
        refused: Why a source was not taken; it never should be.
        said: The message that the caller would get.
    """

    sources: list[str] = field(default_factory=list)
    refused: str = ""
    said: str = ""


def lower(body: bytes, kind: pb.ArtifactKind.ValueType = pb.ARTIFACT_KIND_INDUCTOR) -> Lowered:
    """Run a native job without running a compiler.

    Args:
        body: A GraphBody.
        kind: INDUCTOR or AOT_INDUCTOR.
    """
    found = Lowered()
    with tempfile.TemporaryDirectory() as folder, _without_compiler(found):
        job = worker.NativeJob(
            kind=kind,
            request=_request(torch.is_grad_enabled()),
            progress=str(Path(folder) / "progress"),
            cache=folder,
        )
        job.graph.graph.body = body
        try:
            make_artifact(job)
        except (CannotCompile, LazyfxError) as error:
            found.said = str(error)
        except NativeSourceRefused as error:
            found.refused = str(error)
    return found


@lru_cache(maxsize=2)
def _request(grad: bool) -> pb.NativeRequest:
    with torch.set_grad_enabled(grad):
        return native_request({torch.device("cpu")}, None, {})


@contextmanager
def _without_compiler(found: Lowered) -> Iterator[None]:
    def cpp(source: str) -> None:
        found.sources.append(source)
        check_cpp(source)

    def python(source: str) -> None:
        found.sources.append(source)
        check_wrapper(source)

    def load_async(cls: Any, *args: Any, **given: Any) -> Any:
        arguments = bound_arguments(cls, args, given).arguments
        codecache.write(arguments["main_code"], "main.cpp")
        if arguments["optimized_code"]:
            codecache.write(arguments["optimized_code"], "optimized.cpp")
        return lambda: _Built(__file__, "key")

    def compile_aot(_graph: Any, wrapper: str, kernels: str, *_: Any, **__: Any) -> Any:
        codecache.write(wrapper, "wrapper.cpp")
        codecache.write(kernels, "kernel.cpp")
        raise _Stopped

    with (
        mock.patch.object(sources, "check_cpp", cpp),
        mock.patch.object(sources, "check_wrapper", python),
        mock.patch(
            "lazyfx_server.jobs.native.toolchain.torch_inductor_kernels.LOAD_ASYNC", load_async
        ),
        mock.patch.object(codecache.AotCodeCompiler, "compile", compile_aot),
        torch._inductor.config.patch(force_disable_caches=True),
    ):
        yield

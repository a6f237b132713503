"""The build that most kernels need, so that the server can prepare it before anybody asks."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from lazyfx_server.execution import CallFailed
from lazyfx_server.jobs.native.toolchain.compiler import Compiler
from lazyfx_server.jobs.native.toolchain.subprocess_hooks import (
    UnsupportedCommand,
    redirect_compiles,
)
from lazyfx_server.jobs.native.toolchain.torch_inductor_kernels import compile_only
from lazyfx_server.v1 import worker_pb2 as worker

_SOURCE = 'extern "C" void kernel() {}'


def usual_build(compiler: Compiler, folder: Path) -> worker.BuildRequest:
    """The request of a kernel with default settings; nothing is compiled.

    Afterwards, Inductor can compile nothing in this process.

    Args:
        compiler: The server's compiler.
        folder: The job's folder.
    """
    asked = [worker.BuildRequest()]

    def note(question: bytes) -> NoReturn:
        asked.append(worker.BuildRequest.FromString(question))
        raise CallFailed("nobody needs this kernel")

    redirect_compiles(compiler, folder, note)
    with suppress(UnsupportedCommand):
        compile_only(_SOURCE)
    return asked[-1]

"""The job function of a compile worker: one request, bytes in, bytes out; then the process exits.

The command line is assembled here from the server's own settings and the request's closed
vocabulary, which is checked once more.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import IO, Final

from lazyfx_server.jobs.native.confinement import Confinement
from lazyfx_server.jobs.native.toolchain.compiler import Compiler
from lazyfx_server.jobs.native.toolchain.flags import RequestRefused, check_build_request
from lazyfx_server.security.native_source import NativeSourceRefused, check_cpp
from lazyfx_server.v1 import worker_pb2 as worker

_MAX_TOLD: Final = 4096
_SOURCES: Final = {worker.BUILD_KIND_DATA: "data.S", worker.BUILD_KIND_HEADER: "header.h"}
_OUTPUT: Final = "made"
# Of any error in a source, and of g++ if a program that it started was killed.
_USUAL_STATUS: Final = 1
# The last that g++ writes then. Elsewhere, the same words may be quoted from the source.
_KILLED_AT_LAST: Final = re.compile(
    r"^[^\s:]+: fatal error: [^\n]+ signal terminated program \S+\n"
    r"(?:compilation terminated\.\n)?\Z",
    re.MULTILINE,
)
# Written by g++ and clang if such a program crashed.
_CRASHED: Final = ("signal terminated program", "command failed due to signal")
HEADER: Final = "header.h"


def run_compile_job(compiler: Compiler, confinement: Confinement, data: bytes) -> bytes:
    """Run one serialized BuildJob and return a serialized BuildResult.

    Raises:
        CompilerKilledError: The compiler was killed, e.g. for want of memory.
        SandboxError: The process could not be confined.
    """
    job = worker.BuildJob.FromString(data)
    confinement.enter(Path(job.folder), *([Path(job.header).parent] if job.header else []))
    result = worker.BuildResult()
    try:
        result.output = build(job, compiler)
    except (RequestRefused, NativeSourceRefused) as refusal:
        result.refused = str(refusal)[:_MAX_TOLD] or "the source was refused"
    except _CompilerError as failure:
        result.failed = str(failure)[:_MAX_TOLD]
    return result.SerializeToString()


class CompilerKilledError(Exception):
    """The compiler, or a program that it started, was ended by a signal."""


class _CompilerError(Exception):
    """The compiler's output."""


def build(job: worker.BuildJob, compiler: Compiler) -> bytes:
    """Run the requested compile.

    Returns:
        An object or a library; empty for a header, which stays in the job's folder.

    Raises:
        RequestRefused: The request contains something unknown.
        NativeSourceRefused: Its source does too.
        CompilerKilledError: A signal ended the compiler.
        _CompilerError: The compiler failed; with its output.
    """
    folder, request = Path(job.folder), job.request
    if request.kind == worker.BUILD_KIND_HEADER:
        inputs = [_written(folder / HEADER, f"#include <{request.header}>\n".encode())]
    else:
        check_build_request(request)
        inputs = _inputs(job, folder)
    with (folder / "said").open("w+b") as said:
        status = subprocess.run(  # noqa: S603 - the command line is put together here
            _command(job, compiler, inputs), cwd=folder, env=_environment(compiler, folder),
            stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=False,
        ).returncode  # fmt: skip
        if status != 0:
            said.seek(0)
            text = said.read(_MAX_TOLD).decode("utf-8", "replace")
            if _was_killed(status, said):
                raise CompilerKilledError(text.strip() or f"by signal {-status}")
            raise _CompilerError(text or f"the compiler exited with status {status}")
    if request.kind == worker.BUILD_KIND_HEADER:
        return b""
    return (folder / _OUTPUT).read_bytes()


def _was_killed(status: int, said: IO[bytes]) -> bool:
    """Whether a signal ended the compiler or what it started, which it says at the end."""
    if status < 0:
        return True
    said.seek(-min(_MAX_TOLD, said.seek(0, os.SEEK_END)), os.SEEK_END)
    end = said.read().decode("utf-8", "replace")
    if status == _USUAL_STATUS:
        return _KILLED_AT_LAST.search(end) is not None
    return any(words in end for words in _CRASHED)


def _inputs(job: worker.BuildJob, folder: Path) -> list[str]:
    request = job.request
    if request.kind == worker.BUILD_KIND_LINK:
        return [
            _written(folder / f"object{number}.o", data) for number, data in enumerate(job.objects)
        ]
    if request.kind != worker.BUILD_KIND_DATA:
        try:
            check_cpp(request.source.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise RequestRefused("the source is not UTF-8") from error
    return [_written(folder / _SOURCES.get(request.kind, "source.cpp"), request.source)]


def _written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return path.name


def _command(job: worker.BuildJob, compiler: Compiler, inputs: list[str]) -> list[str]:
    request = job.request
    # torch's headers give 200 KB of warnings for each kernel, which take time and tell nobody.
    command = [compiler.path, "-w"]
    if request.kind == worker.BUILD_KIND_HEADER:
        return [
            *command, "-x", "c++-header", *inputs, *request.flags,
            *(f"-I{path}" for path in compiler.include), "-o", f"{HEADER}.gch",
        ]  # fmt: skip
    command += [*inputs, *request.flags]
    if request.header:
        command += ["-include", job.header or request.header]
    command += [f"-I{path}" for path in compiler.include]
    if request.kind in (worker.BUILD_KIND_OBJECT, worker.BUILD_KIND_DATA):
        return [*command, "-c", "-o", _OUTPUT]
    return [
        *command, "-shared", "-o", _OUTPUT, *(f"-l{name}" for name in request.libraries),
        *(f"-L{path}" for path in compiler.libraries),
    ]  # fmt: skip


def _environment(compiler: Compiler, folder: Path) -> dict[str, str]:
    places = [os.path.dirname(program) for program in (compiler.path, *compiler.programs)]  # noqa: PTH120
    return {
        "PATH": ":".join(dict.fromkeys([*places, "/usr/bin", "/bin"])),
        "TMPDIR": str(folder),
        "LC_ALL": "C",
    }

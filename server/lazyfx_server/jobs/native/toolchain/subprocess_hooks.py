"""Replaces every program that Inductor would start in this process by calls to the server."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lazyfx_server.execution import CallFailed, call_server
from lazyfx_server.execution.job_calls import CallServer
from lazyfx_server.jobs.native.toolchain.commands import read_command
from lazyfx_server.jobs.native.toolchain.compiler import Compiler
from lazyfx_server.jobs.native.toolchain.flags import RequestRefused
from lazyfx_server.jobs.native.torch_inductor_codegen import CppCompileError, replace_programs
from lazyfx_server.v1 import worker_pb2 as worker

_LOADED = re.compile(r'LoadLibrary\("([^"\n]+)"\)')


class UnsupportedCommand(Exception):  # noqa: N818 - reads as what happened
    """Inductor requested a command that this server does not support; the message names it.

    Attributes:
        first: The message of the first one in this process; Inductor hides it behind its own error.
    """

    first = ""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        UnsupportedCommand.first = UnsupportedCommand.first or reason


def redirect_compiles(compiler: Compiler, folder: Path, call: CallServer = call_server) -> None:
    """Replace Inductor's compiles in this process by calls to the server.

    Args:
        compiler: The server's compiler.
        folder: The job's folder, for placeholder paths of precompiled headers.
        call: Calls the server.
    """
    places = _ServerToolchain(compiler, folder, call)
    replace_programs(
        run_command=places.run_command,
        precompile_header=places.precompile_header,
        compiler=compiler.name,
        subprocess=_SubprocessStub(compiler),
    )


class _ServerToolchain:
    """Maps paths of this process to objects and headers on the server."""

    def __init__(self, compiler: Compiler, folder: Path, call: CallServer) -> None:
        self._compiler = compiler
        self._folder = folder
        self._call = call
        self._headers: dict[str, str] = {}
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def precompile_header(self, header: str, *_: Any, **__: Any) -> str:
        """The placeholder path of a precompiled header in command lines."""
        path = str(self._folder / "headers" / header)
        with self._lock:
            self._headers[path] = header
        return path

    def run_command(self, line: str, cwd: str) -> None:  # noqa: ARG002 - torch's signature
        """Replaces `cpp_builder.run_compile_cmd`.

        Raises:
            CppCompileError: The compiler failed.
            UnsupportedCommand: The server does not support this compile.
        """
        try:
            with self._lock:
                command = read_command(line, self._compiler, self._headers, self._objects)
            answer = self._call(command.request.SerializeToString())
        except (RequestRefused, CallFailed) as refusal:
            raise UnsupportedCommand(
                f"the server does not support this compile: {refusal}"
            ) from refusal
        result = worker.BuildResult.FromString(answer)
        if result.failed:
            raise CppCompileError([self._compiler.name], result.failed)
        command.output.write_bytes(result.output)
        if command.output.suffix == ".o":
            with self._lock:
                self._objects[str(command.output)] = result.key


class _SubprocessStub:
    """Replaces the module `subprocess` in torch's modules that query compilers."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler

    def __getattr__(self, name: str) -> Any:
        if name in ("Popen", "call", "getoutput", "getstatusoutput"):
            raise UnsupportedCommand("a native worker starts no programs")
        return getattr(subprocess, name)

    def check_output(self, command: Sequence[str], **_: Any) -> bytes:
        """The compiler's answer when the server queried it."""
        answer = b""
        if command and command[0] == self._compiler.name:
            answer = self._compiler.answers.get(tuple(command[1:]), b"")
        if not answer:
            raise FileNotFoundError(f"a native worker does not start {' '.join(command[:1])!r}")
        return answer

    def run(self, command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        """Load the library of a probe in this process, which exits after its job."""
        self.check_call(command)
        return subprocess.CompletedProcess(list(command), 0, b"", b"")

    def check_call(self, command: Sequence[str], **_: Any) -> int:
        """See `run`."""
        found = _LOADED.search(command[-1]) if len(command) == 3 else None
        if found is None or command[0] != sys.executable:
            raise FileNotFoundError(f"a native worker does not start {' '.join(command[:1])!r}")
        try:
            ctypes.CDLL(found[1])
        except OSError as error:
            raise subprocess.CalledProcessError(1, list(command)) from error
        return 0

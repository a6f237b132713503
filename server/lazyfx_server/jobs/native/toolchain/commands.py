"""Translates Inductor's command lines to requests in a closed vocabulary, without paths."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lazyfx_server.jobs.native.toolchain.compiler import Compiler
from lazyfx_server.jobs.native.toolchain.flags import RequestRefused, check_build_request
from lazyfx_server.v1 import worker_pb2 as worker


@dataclass(frozen=True)
class Command:
    """A parsed command line.

    Attributes:
        request: The request, in the closed vocabulary.
        output: The path at which Inductor expects the result.
    """

    request: worker.BuildRequest
    output: Path


def read_command(
    line: str, compiler: Compiler, headers: Mapping[str, str], objects: Mapping[str, bytes]
) -> Command:
    """Parse a command line.

    Args:
        line: The command line that Inductor wrote.
        compiler: The program that it must name, and the folders that it may name.
        headers: Precompiled headers by their placeholder paths.
        objects: Keys of objects that the server has built, by their paths.

    Raises:
        RequestRefused: It cannot be expressed as a request.
    """
    words = shlex.split(line)
    if not words or words[0] != compiler.name:
        raise RequestRefused(f"{' '.join(words[:1])!r} is not the compiler")
    request = worker.BuildRequest()
    output = ""
    compile_only = shared = False
    inputs: list[str] = []
    rest = iter(words[1:])
    for word in rest:
        if word in ("-o", "-D", "-include", "-I", "-L"):
            value = next(rest, "").strip()
            if word == "-o":
                output = value
            elif word == "-include":
                request.header = _known(value, headers)
            else:
                _flag(request, word + value, compiler)
        elif word == "-c":
            compile_only = True
        elif word == "-shared":
            shared = True
        elif word.startswith("-"):
            _flag(request, word, compiler)
        else:
            inputs.append(word)
    if not output or not inputs or compile_only == shared:
        raise RequestRefused("the command line neither compiles nor links")
    _fill(request, inputs, objects, shared=shared)
    check_build_request(request)
    return Command(request, Path(output))


def _flag(request: worker.BuildRequest, word: str, compiler: Compiler) -> None:
    if word.startswith("-I"):
        _one_of(word[2:], compiler.include)
    elif word.startswith("-L"):
        _one_of(word[2:], compiler.libraries)
    elif word.startswith("-l"):
        request.libraries.append(word[2:])
    else:
        request.flags.append(word)


def _fill(
    request: worker.BuildRequest,
    inputs: list[str],
    objects: Mapping[str, bytes],
    *,
    shared: bool,
) -> None:
    if all(path.endswith(".o") for path in inputs):
        if unknown := [path for path in inputs if path not in objects]:
            raise RequestRefused(f"the server has not built the object {unknown[0]!r}")
        request.kind = worker.BUILD_KIND_LINK
        request.objects.extend(objects[path] for path in inputs)
        return
    if len(inputs) != 1:
        raise RequestRefused(f"{len(inputs)} sources in one command line")
    (path,) = inputs
    if path.endswith((".S", ".s")):
        request.kind = worker.BUILD_KIND_DATA
    else:
        request.kind = worker.BUILD_KIND_LIBRARY if shared else worker.BUILD_KIND_OBJECT
    request.source = Path(path).read_bytes()


def _known(path: str, headers: Mapping[str, str]) -> str:
    if path not in headers:
        raise RequestRefused(f"{path!r} is not a precompiled header")
    return headers[path]


def _one_of(folder: str, known: tuple[str, ...]) -> None:
    if folder not in known:
        raise RequestRefused(f"the folder {folder!r} is neither torch's nor Python's")

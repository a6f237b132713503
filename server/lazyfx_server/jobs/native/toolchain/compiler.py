"""The C++ compiler of this server: its path, its identity, and the programs that it runs."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import struct
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch.utils import cpp_extension

from lazyfx.shared.native import torch_inductor

_SECONDS: Final = 30.0
# What Inductor asks a compiler, and is answered without running one.
_QUESTIONS: Final = (("--version",), ("-v",), ("-dumpfullversion", "-dumpversion"))
# How GCC names the actual driver, even behind a wrapper.
_DRIVER: Final = re.compile(r"^COLLECT_GCC=(\S{1,4096})$", re.MULTILINE)
_PROGRAMS: Final = ("cc1plus", "cc1", "collect2", "as", "ld", "lto-wrapper")


class CompilerMissing(Exception):  # noqa: N818 - reads as what happened
    """There is no working C++ compiler; the message says what to do."""


@dataclass(frozen=True)
class Compiler:
    """A working C++ compiler.

    Attributes:
        name: Its name for Inductor, e.g. "g++".
        path: Path of the program.
        answers: Its answers to Inductor's queries, by their arguments.
        programs: The compiler, and every program that it runs.
        identity: SHA-256 over what it says about itself, torch's sources and Python's ABI; see
            `toolchain_digest` for what distinguishes compilers of different machines.
        include: Include folders.
        libraries: Library folders.
        data: Folders of the compiler's own headers and object files.
    """

    name: str
    path: str
    answers: Mapping[tuple[str, ...], bytes]
    programs: tuple[str, ...]
    identity: bytes
    include: tuple[str, ...]
    libraries: tuple[str, ...]
    data: tuple[str, ...]


def find_compiler() -> Compiler:
    """Find the compiler that Inductor would use: the variable CXX, or g++.

    Raises:
        CompilerMissing: There is none, or it does not work.
    """
    name = os.environ.get("CXX") or "g++"
    found = shutil.which(name)
    if found is None:
        raise CompilerMissing(
            f"there is no C++ compiler {name!r} here; install g++, or set CXX to one"
        )
    path = str(Path(found).absolute())
    answers: dict[tuple[str, ...], bytes] = {
        question: compiler_output(path, *question) for question in _QUESTIONS
    }
    if not answers[("--version",)]:
        raise CompilerMissing(
            f"the C++ compiler {path} does not answer --version; install g++, or set CXX to another"
        )
    include, libraries = _include_folders(), _library_folders()
    identity = hashlib.sha256(
        repr((
            sorted(answers.items()), torch_inductor.torch_key(), platform.machine(),
            sysconfig.get_config_var("SOABI"),
        )).encode()
    ).digest()  # fmt: skip
    return Compiler(
        name,
        path,
        answers,
        _programs(path, answers[("-v",)]),
        identity,
        include,
        libraries,
        _data(path),
    )


def compiler_output(path: str, *arguments: str) -> bytes:
    """What a compiler answers on either stream; empty if it fails."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    try:
        return subprocess.run(  # noqa: S603 - the operator names the compiler
            [path, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=_SECONDS, env=environment, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return b""


def _programs(path: str, about: bytes) -> tuple[str, ...]:
    """The files that a compile executes: the compiler, also behind a wrapper, and their parts."""
    found = {path, *_interpreter(Path(path))}
    for name in _DRIVER.findall(about.decode("utf-8", "replace")):
        found.add(shutil.which(name) or path)
    for program in _PROGRAMS:
        answer = compiler_output(path, f"-print-prog-name={program}")
        said = answer.decode("utf-8", "replace").strip()
        where = shutil.which(said) if said else None
        if where is not None:
            found.add(where)
    real = {os.path.realpath(program) for program in found}
    loaders = {loader for program in real if (loader := loader_of(Path(program)))}
    return tuple(sorted(real | {os.path.realpath(loader) for loader in loaders}))


def _interpreter(script: Path) -> list[str]:
    """The interpreter that the kernel starts for a script, and the one that `env` then starts."""
    try:
        with script.open("rb") as file:
            line = file.readline(256)
    except OSError:
        return []
    words = line[2:].decode("utf-8", "replace").split() if line.startswith(b"#!") else []
    return [where for word in words[:2] if (where := shutil.which(word)) is not None]


def loader_of(program: Path) -> str | None:
    """The dynamic loader that the kernel starts with a program, as its ELF header names it."""
    try:
        data = program.read_bytes()[: 1 << 16]
        (table,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        for number in range(count):
            kind, _, at, _, _, length = struct.unpack_from("<IIQQQQ", data, table + number * size)
            if kind == 3:  # PT_INTERP
                return data[at : at + length].rstrip(b"\0").decode()
    except (OSError, struct.error, UnicodeDecodeError):
        return None
    return None


def _data(path: str) -> tuple[str, ...]:
    """Folders that a compiler reads implicitly: its headers, start files and plugins."""
    said = compiler_output(path, "-print-search-dirs").decode("utf-8", "replace")
    folders = ["/usr/include", "/usr/local/include"]
    for line in said.splitlines():
        kind, _, rest = line.partition(": ")
        if kind in ("install", "libraries", "programs"):
            folders += rest.lstrip("=").split(":")
    real = (os.path.realpath(folder) for folder in folders if folder)
    return tuple(dict.fromkeys(f for f in real if f not in ("/", "/usr") and Path(f).is_dir()))


def _include_folders() -> tuple[str, ...]:
    """Include folders in Inductor's command lines, in its order."""
    found = [sysconfig.get_path("include"), sysconfig.get_path("include", scheme="posix_prefix")]
    found += cpp_extension.include_paths()
    if torch.cuda.is_available():
        found += cpp_extension.include_paths("cuda")
    return tuple(dict.fromkeys(found))


def _library_folders() -> tuple[str, ...]:
    """Library folders in Inductor's command lines, in its order."""
    found = [str(sysconfig.get_config_var("LIBDIR")), cpp_extension.TORCH_LIB_PATH]
    if torch.cuda.is_available():
        found += cpp_extension.library_paths("cuda")
    return tuple(dict.fromkeys(found))

"""What the output of a compile depends on, besides its source and flags: programs and headers.

Servers of one digest compile one source to the same library, so they can share it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from lazyfx_server.jobs.native.toolchain.compiler import Compiler, compiler_output
from lazyfx_server.security.native_source import STANDARD_HEADERS

# What the linker adds to a library, besides torch's own ones, which the compiler's identity covers.
_LINKED: Final = (
    "crti.o", "crtbeginS.o", "crtendS.o", "crtn.o", "libgcc.a", "libgcc_s.so", "libstdc++.so",
    "libgomp.so", "libm.so", "libc.so", "libc_nonshared.a",
)  # fmt: skip
# The driver's command line shows what -march=native means on this CPU.
# An error without the flag of its instructions. It belongs to the compiler, whose programs count.
_ELSEWHERE: Final = frozenset({"arm_sve.h"})
_NATIVE: Final = ("-march=native", "-###", "-E", "-x", "c++", os.devnull)


def toolchain_digest(compiler: Compiler) -> bytes:
    """SHA-256 over everything that turns a source into a library on this machine.

    That is: the compiler's identity, the contents of its programs and of what it links, the CPU
    that `-march=native` stands for, and the contents of every header that a source may include.
    Reads some 100 MB.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256(b"lazyfx toolchain 1\0" + compiler.identity)
    for part in (
        compiler_output(compiler.path, *_NATIVE),
        *_digests(compiler.programs),
        *_digests(_linked(compiler)),
        *_digests(_standard_headers(compiler)),
        *(part for folder in compiler.include for part in _tree(Path(folder))),
    ):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _digests(paths: Iterable[str]) -> Iterator[bytes]:
    for path in paths:
        yield path.encode()
        yield _content(Path(path))


def _content(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _linked(compiler: Compiler) -> Iterator[str]:
    said = compiler_output(compiler.path, "-print-search-dirs").decode()
    lines = (line.partition(": =") for line in said.splitlines())
    folders = [
        folder for kind, _, rest in lines if kind == "libraries" for folder in rest.split(":")
    ]
    for name in _LINKED:
        found = (Path(folder) / name for folder in folders)
        if (path := next(filter(Path.is_file, found), None)) is not None:
            yield os.path.realpath(path)


def _standard_headers(compiler: Compiler) -> list[str]:
    """The files that the standard headers consist of here.

    Raises:
        OSError: The compiler does not list them.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "all.cpp"
        source.write_text(
            "".join(
                f"#if __has_include(<{name}>)\n#include <{name}>\n#endif\n"
                for name in STANDARD_HEADERS
                if name not in _ELSEWHERE
            )
        )
        said = compiler_output(
            compiler.path, "-std=c++20", "-fopenmp", "-M", *_folders(compiler), str(source)
        ).decode()
        words = shlex.split(said.partition(": ")[2].replace("\\\n", " "))
        if not words:
            raise OSError(f"{compiler.path} -M does not list the headers of a source")
        return sorted({os.path.realpath(word) for word in words if word != str(source)})


def _folders(compiler: Compiler) -> list[str]:
    return [f"-I{folder}" for folder in compiler.include]


def _tree(folder: Path) -> Iterator[bytes]:
    """The names and contents of all files below a folder, in one order."""
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(where) / name
            yield os.fsencode(path.relative_to(folder))
            yield _content(path)

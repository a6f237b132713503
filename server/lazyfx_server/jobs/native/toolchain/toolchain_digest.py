"""What the output of a compile depends on, besides its source and flags: programs and headers.

Servers of one digest compile one source to the same library, so they can share it.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lazyfx_server.jobs.native.toolchain.compiler import Compiler, compiler_output, loader_of
from lazyfx_server.jobs.native.toolchain.flags import LIBRARIES
from lazyfx_server.security.stat_fingerprint import (
    StatFingerprint,
    known_fingerprint,
    stat_fingerprint,
)

# The driver's command line shows what -march=native means on this CPU.
_NATIVE: Final = ("-march=native", "-###", "-E", "-x", "c++", os.devnull)
_SEARCHED: Final = ("-E", "-v", "-x", "c++", os.devnull)
# What compilers and linkers add to a library by themselves.
_ADDED: Final = (
    "crti.o", "crtbeginS.o", "crtendS.o", "crtn.o", "crtfastmath.o", "libgcc_s.so.1",
    "libc_nonshared.a",
    *(f"lib{name}.{end}"
      for name in ("c", "gcc", "gcc_eh", "gcc_s", "m", "omp", "stdc++") for end in ("so", "a")),
)  # fmt: skip
_REQUESTED: Final = tuple(f"lib{name}.{end}" for name in sorted(LIBRARIES) for end in ("so", "a"))
# Read by the driver and the linker if they exist.
_DATA: Final = ("liblto_plugin.so", "specs", "libgomp.spec")
_BINARY: Final = (b"\x7fELF", b"!<arch>")
_PATHS: Final = re.compile(rb"(?<![^\s(])/[^\s()]{1,4096}")
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A toolchain as it was read.

    Attributes:
        digest: SHA-256 over all of it.
        looks: Inode, size and time of its programs and libraries, and of the folders of headers.
    """

    digest: bytes
    looks: Mapping[str, StatFingerprint]

    def changed(self) -> str:
        """A file or folder that was replaced since, e.g. by an upgrade; "" if there is none.

        Package managers replace files, which changes their folder. A header that is overwritten
        in place is not noticed.
        """
        changes = (
            path for path, looks in self.looks.items() if known_fingerprint(Path(path)) != looks
        )
        return next(changes, "")


def read_toolchain(compiler: Compiler) -> Toolchain:
    """Read everything that turns a source into a library on this machine.

    That is: the compiler's identity, the contents of its programs, of their libraries and of what
    they link, the CPU that `-march=native` stands for, and the contents of every folder in which
    the compiler looks for headers. Reads some 700 MB.

    Raises:
        OSError: The compiler does not answer, or a file cannot be read.
        ValueError: An answer or a path cannot be understood.
    """
    reading = _Reading()
    digest = hashlib.sha256(b"lazyfx toolchain 2\0" + compiler.identity)
    for part in _parts(compiler, reading):
        digest.update(len(part).to_bytes(8, "little") + part)
    return Toolchain(digest.digest(), reading.looks)


def _parts(compiler: Compiler, reading: _Reading) -> Iterator[bytes]:
    yield _answer(compiler.path, *_NATIVE)
    for program in compiler.programs:
        yield program.encode()
        yield reading.content(program)
        for library in _libraries_of(program):
            yield reading.content(library)
    for name in _DATA:
        found = _answer(compiler.path, f"-print-file-name={name}").decode().strip()
        if Path(found).is_absolute() and Path(found).is_file():
            yield name.encode()
            yield reading.content(found)
    for path in linked(compiler):
        yield Path(path).name.encode()
        yield reading.content(path)
    for folder in (*compiler.include, *_searched(compiler)):
        yield b"folder"
        yield from reading.tree(folder)


def _answer(program: str, *arguments: str) -> bytes:
    said = compiler_output(program, *arguments)
    if not said:
        raise OSError(f"{program} does not answer {' '.join(arguments)}")
    return said


def _libraries_of(program: str) -> list[str]:
    """The shared libraries that a program loads, as its loader lists them."""
    loader = loader_of(Path(program))
    if loader is None:
        return []
    said = _answer(loader, "--list", program).decode()
    words = (line.partition(" (0x")[0].rpartition("=> ")[2].strip() for line in said.splitlines())
    return [word for word in words if word.startswith("/")]


def linked(compiler: Compiler) -> list[str]:
    """What may become part of a library or gives it its symbols' versions, in order of search.

    Raises:
        OSError: The compiler does not name its folders, or nothing is in them.
    """
    said = _answer(compiler.path, "-print-search-dirs").decode()
    folders = list(compiler.libraries)
    for line in said.splitlines():
        kind, _, rest = line.partition(": =")
        if kind == "libraries":
            folders += filter(None, rest.split(":"))
    found = [
        path
        for name in (*_ADDED, *_REQUESTED)
        for folder in folders
        if (path := os.path.join(folder, name)) and os.path.isfile(path)  # noqa: PTH113, PTH118 - many
    ]
    if not found:
        raise OSError(f"{compiler.path} names no folder with libraries")
    for path in tuple(found):
        found += _named_by_script(path)
    return found


def _named_by_script(library: str) -> list[str]:
    """The files that a linker script names, as libc.so and libm.so are."""
    with open(library, "rb") as file:  # noqa: PTH123 - as above
        data = file.read(1 << 16)
    if data.startswith(_BINARY):
        return []
    return [name for path in _PATHS.findall(data) if Path(name := os.fsdecode(path)).is_file()]


def _searched(compiler: Compiler) -> list[str]:
    """The folders in which the compiler looks for headers by itself."""
    said = _answer(compiler.path, *_SEARCHED).decode()
    listed = said.partition("#include <...> search starts here:\n")[2]
    listed, end, _ = listed.partition("End of search list")
    if not end:
        raise OSError(f"{compiler.path} does not list its folders of headers")
    return [line.strip() for line in listed.splitlines()]


class _Reading:
    """Reads each file and folder once.

    Attributes:
        looks: What programs, libraries and folders looked like before they were read.
    """

    def __init__(self) -> None:
        self.looks: dict[str, StatFingerprint] = {}
        self._contents: dict[str, bytes] = {}
        self._folders: dict[tuple[int, int], int] = {}

    def content(self, path: str) -> bytes:
        """SHA-256 of a program's or library's content."""
        real = os.path.realpath(path)
        if real not in self._contents:
            self._note(real)
            self._contents[real] = _digest(real)
        return self._contents[real]

    def tree(self, folder: str) -> Iterator[bytes]:
        """The names and contents of all files below a folder, in one order, through links."""
        if not os.path.lexists(folder):
            return  # compilers ignore it, too
        for where, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
            status = os.stat(where)  # noqa: PTH116 - thousands of them
            place = (status.st_dev, status.st_ino)
            yield os.fsencode(os.path.relpath(where, folder))
            if place in self._folders:  # also reached otherwise, perhaps in a circle
                folders.clear()
                yield self._folders[place].to_bytes(8, "little")
                continue
            self._folders[place] = len(self._folders)
            self._note(where)
            folders.sort()
            for name in sorted(files):
                yield os.fsencode(name)
                yield _header(os.path.join(where, name))  # noqa: PTH118 - as above

    def _note(self, path: str) -> None:
        self.looks[path] = stat_fingerprint(Path(path))


def _raise(error: OSError) -> None:
    raise error


def _header(path: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - thousands of them
            return b"not a file"
        return _digest(path)
    except FileNotFoundError:
        return b"a link to nothing"


def _digest(path: str) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - as above
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()

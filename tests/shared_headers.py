"""A C++ compiler for the servers of a test run, which precompiles each header once.

A server precompiles Inductor's header for itself, which takes ten seconds of a core. This compiler
does as it is told, and takes the place of the header that another server of the run has made with
the same arguments. It is a program of the shell alone, because a confined compiler starts no other
programs; and it writes only where it is called, so what servers have made is collected before the
next one starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_VARIABLE: Final = "LAZYFX_TEST_HEADERS"

_PROGRAM: Final = """#!/bin/sh
{before}
case "$*" in
# What the compiler says it reads may be read in its sandbox, and so the headers.
-print-search-dirs) echo "programs: ={readable}" ;;
*"-x c++-header"*)
    for known in {headers}/*/arguments; do
        if [ -f "$known" ] && read -r line <"$known" && [ "$line" = "$*" ]; then
            echo "${{known%arguments}}header.h" >shared
            exit 0
        fi
    done
    {compiler} "$@" || exit
    echo "$*" >arguments
    exit 0
    ;;
esac
left=$#
while [ "$left" -gt 0 ]; do
    word=$1
    case "$word" in */header.h)
        if [ -f "${{word%header.h}}shared" ]; then read -r word <"${{word%header.h}}shared"; fi ;;
    esac
    shift
    set -- "$@" "$word"
    left=$((left - 1))
done
exec {compiler} "$@"
"""


@contextlib.contextmanager
def shared_headers() -> Iterator[None]:
    """Shared by everything that a test run starts."""
    if shutil.which("g++") is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="lazyfx-headers-") as name:
        folder = Path(name)
        os.environ[_VARIABLE] = name
        write_compiler(folder)
        yield
        del os.environ[_VARIABLE]


def write_compiler(folder: Path, before: str = "") -> Path:
    """Write the compiler to a folder; `before` is what it does first, in its sandbox."""
    headers = os.environ.get(_VARIABLE, str(folder))
    readable = ":".join(dict.fromkeys((str(folder), headers)))
    compiler = shutil.which("g++")
    tool = folder / "g++"
    tool.write_text(
        _PROGRAM.format(before=before, readable=readable, headers=headers, compiler=compiler)
    )
    # Confined compilers may run as another user.
    folder.chmod(0o755)
    tool.chmod(0o755)
    return tool


def compiler() -> str | None:
    """The compiler of the test run; None if there is no g++."""
    folder = os.environ.get(_VARIABLE)
    return str(Path(folder, "g++")) if folder else None


def collect() -> None:
    """Take over the headers that servers have made so far."""
    base = Path(tempfile.gettempdir()) / f"lazyfx-native-{os.geteuid()}"
    if folder := os.environ.get(_VARIABLE):
        for arguments in base.glob("server-*/headers/*/arguments"):
            with contextlib.suppress(OSError):  # its server has ended
                _collect(arguments, Path(folder))


def _collect(arguments: Path, folder: Path) -> None:
    text = arguments.read_bytes()
    kept = folder / hashlib.sha256(text).hexdigest()
    if kept.exists() or not text.endswith(b"\n"):
        return
    made = Path(tempfile.mkdtemp(prefix=".", dir=folder))
    try:
        for name in ("header.h", "header.h.gch", "arguments"):
            shutil.copyfile(arguments.with_name(name), made / name)
            (made / name).chmod(0o644)
        made.chmod(0o755)
        made.rename(kept)
    except OSError:
        shutil.rmtree(made)
        raise

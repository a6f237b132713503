"""Writes compiled modules to files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lazyfx.cli.common_options import Kind

if TYPE_CHECKING:
    from lazyfx.blocking_module import RemoteModule

SUFFIXES: Mapping[Kind, str] = {
    Kind.CODE: ".py",
    Kind.GRAPH: ".graph",
    Kind.PICKLE: ".pkl",
    Kind.PACKAGE: ".package.pt",
    Kind.PICTURE: ".svg",
    Kind.TORCHSCRIPT: ".ts",
    Kind.EXPORTED_PROGRAM: ".exported.pt2",
    Kind.AOT_INDUCTOR: ".aot.pt2",
}


def text_of(remote: RemoteModule, kind: Kind) -> str | None:
    """A compiled module as text; None if the kind is not text.

    Raises:
        ServiceError: The server cannot render it.
    """
    if kind is Kind.CODE:
        return remote.code
    return str(remote.picture()) if kind is Kind.PICTURE else None


def write_artifact(remote: RemoteModule, kind: Kind, target: Path) -> None:
    """Atomically write a compiled module to a file.

    Args:
        remote: The module.
        kind: What to write. A graph is a serialized lazyfx.v1.Graph with the caller's names; code
            is a Python file, with its constants, if any, in a second file next to it.
        target: The file; replaced if it exists. Its folder is created.

    Raises:
        ServiceError: The server cannot render it.
        OSError: The file cannot be written.
    """
    if kind is Kind.PICKLE:
        replace_file(target, lambda temporary: remote.save_pickle(temporary))
    elif kind is Kind.PACKAGE:
        replace_file(target, lambda temporary: remote.save_package(temporary))
    elif kind is Kind.TORCHSCRIPT:
        replace_file(target, lambda temporary: remote.save_torchscript(temporary))
    elif kind is Kind.EXPORTED_PROGRAM:
        replace_file(target, lambda temporary: remote.save_exported_program(temporary))
    elif kind is Kind.AOT_INDUCTOR:
        replace_file(target, lambda temporary: remote.save_aot_inductor(temporary))
    elif kind is Kind.GRAPH:
        from lazyfx.shared import wire

        data = wire.encode(remote.graph_module()).message().SerializeToString(deterministic=True)
        replace_file(target, lambda temporary: temporary.write_bytes(data))
    elif kind is Kind.CODE:
        _write_code(remote, target)
    else:
        text = str(remote.picture())
        replace_file(target, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write_code(remote: RemoteModule, target: Path) -> None:
    from lazyfx.artifacts.python_files import constants_path

    file = remote.python_file(target.name)
    constants = file.constants
    if constants is not None:
        replace_file(constants_path(target), lambda temporary: temporary.write_bytes(constants))
    # Last: a source file without its constants would not run.
    replace_file(target, lambda temporary: temporary.write_text(file.text, encoding="utf-8"))


def is_written(target: Path, kind: Kind) -> bool:
    """Whether a file exists, with the constants file that code may need."""
    if not target.is_file() or kind is not Kind.CODE:
        return target.is_file()
    from lazyfx.artifacts.python_files import constants_path

    constants = constants_path(target)
    return constants.is_file() or constants.name not in target.read_text(encoding="utf-8")


def replace_file(target: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file, and rename it when it is complete.

    Args:
        target: The file; its folder is created.
        write: Writes to the given path.

    Raises:
        OSError: The file cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        write(temporary)
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        if error.filename == str(temporary):
            # Users know the file by its final name.
            error.filename = str(target)
        raise
    except BaseException:  # also on Ctrl-C: leave no partial file behind
        with suppress(OSError):
            temporary.unlink()
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes on this machine left behind.

    Raises:
        OSError: A file cannot be removed.
    """
    for path in folder.rglob(".*.part"):
        process = path.name.removesuffix(".part").rpartition(".")[2]
        if process.isdecimal() and not _is_running(int(process)):
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

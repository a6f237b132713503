"""Writes compiled modules to files."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lazyfx.artifacts.artifact_table import ArtifactKind
    from lazyfx.blocking_module import RemoteModule


def write_artifact(remote: RemoteModule, kind: ArtifactKind, target: Path) -> None:
    """Write a compiled module to a file, whole or not at all.

    Args:
        remote: The module.
        kind: What to write. The constants of code, if any, go into a second file next to it.
        target: Replaced if it exists; its folder is made.

    Raises:
        ServiceError: The server cannot render it.
        OSError: The file cannot be written.
    """
    if kind.name == "code":
        _write_code(remote, target)
    else:
        replace_file(target, lambda temporary: remote.save(temporary, kind.name))


def _write_code(remote: RemoteModule, target: Path) -> None:
    from lazyfx.artifacts.python_files import constants_path

    file = remote.python_file(target.name)
    constants = file.constants
    if constants is not None:
        replace_file(constants_path(target), lambda temporary: temporary.write_bytes(constants))
    # Last: a source file without its constants would not run.
    replace_file(target, lambda temporary: temporary.write_text(file.text, encoding="utf-8"))


def is_written(target: Path, kind: ArtifactKind) -> bool:
    """Whether a file is there, with the constants file that code may need."""
    if not target.is_file() or kind.name != "code":
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

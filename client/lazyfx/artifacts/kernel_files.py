"""The libraries of kernels in Inductor's cache folder, named by what they contain.

A library that is there is not fetched again. The libraries that came from a server for one of its
tenants have a folder of their own, so that no server learns from a request what others have
compiled. A file is compared with the digest in a verified artifact and opened by its name
afterwards, so nobody else may be able to write to the folder: otherwise it is not used.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from lazyfx.shared.native import torch_inductor
from lazyfx.shared.native.native_request import KEPT_PREFIX_BYTES, MAX_KEPT_BYTES
from lazyfx.trust.verifying import Provenance
from lazyfx.v1 import compiler_pb2 as pb

_NAME: Final = re.compile(r"k([0-9a-f]{64})\.so")
_MAX_KEPT: Final = MAX_KEPT_BYTES // KEPT_PREFIX_BYTES
_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def kernel_folder(provenance: Provenance | None) -> Path | None:
    """The folder, created if necessary, of the server that signed an artifact for a tenant.

    Returns:
        None if there is no artifact yet, or other users of this machine could change the folder.
    """
    if provenance is None:
        return None
    name = hashlib.sha256(f"{provenance.public_key} {provenance.tenant}".encode()).hexdigest()
    try:
        folder = Path(torch_inductor.cache_dir()).resolve() / "lazyfx" / name[:32]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if _is_own(folder) else None
    except OSError:
        return None


def has_kept_kernels() -> bool:
    """Whether libraries of any server are kept on this machine."""
    try:
        kept = Path(torch_inductor.cache_dir()).resolve() / "lazyfx"
        return next(kept.glob("*/k*.so"), None) is not None
    except OSError:
        return False


def _is_own(folder: Path) -> bool:
    """Whether only this user, and root, can change what is at an absolute path."""
    for place in (folder, *folder.parents):
        status = place.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (0, os.geteuid()):
            return False
        # In a folder like /tmp, nobody can replace the folder of another user.
        is_shared = place != folder and status.st_mode & stat.S_ISVTX
        if status.st_mode & _OTHERS_MAY_WRITE and not is_shared:
            return False
    return True


@contextmanager
def library_file(data: bytes, folder: Path | None) -> Iterator[Path]:
    """A file with a library, to be opened within the block.

    Args:
        data: The library.
        folder: From `kernel_folder`; None if it is not to be kept.
    """
    name = f"k{hashlib.sha256(data).hexdigest()}.so"
    if folder is not None:
        yield _kept_file(data, folder / name)
        return
    with tempfile.TemporaryDirectory(prefix="lazyfx-") as temporary:
        path = Path(temporary) / name
        path.write_bytes(data)
        yield path


def _kept_file(data: bytes, path: Path) -> Path:
    """Write a file atomically; an existing one is compared first."""
    with suppress(OSError):
        if path.read_bytes() == data:
            os.utime(path)  # among the newest, which are kept
            return path
    path.parent.mkdir(mode=0o700, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".so")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def kept_kernels(folder: Path) -> bytes:
    """The libraries in a folder, as a request names them; removes all but the last used ones."""
    found: list[tuple[float, str]] = []
    try:
        with os.scandir(folder) as entries:
            found.extend(
                (entry.stat(follow_symlinks=False).st_mtime, name[1])
                for entry in entries
                if (name := _NAME.fullmatch(entry.name))
            )
    except OSError:
        return b""
    found.sort(reverse=True)
    for _, digest in found[_MAX_KEPT:]:
        with suppress(OSError):
            (folder / f"k{digest}.so").unlink()
    kept = found[:_MAX_KEPT]
    return b"".join(sorted(bytes.fromhex(digest)[:KEPT_PREFIX_BYTES] for _, digest in kept))


def with_kept_kernels(data: bytes, folder: Path | None) -> bytes | None:
    """A serialized NativeBundle, with the libraries that were left out of it.

    Args:
        data: From a server that knows that libraries are kept; verified.
        folder: Where they are; None if nowhere.

    Returns:
        None if a library is no longer here, or has been changed.
    """
    try:
        bundle = pb.NativeBundle.FromString(data)
    except DecodeError:
        return data  # refused by whoever reads it
    left_out = [kernel for kernel in bundle.kernels if kernel.digest and not kernel.library]
    if not left_out:
        return data
    if folder is None:
        return None
    for kernel in left_out:
        try:
            kernel.library = (folder / f"k{kernel.digest.hex()}.so").read_bytes()
        except OSError:
            return None
        if hashlib.sha256(kernel.library).digest() != kernel.digest:
            return None
        kernel.ClearField("digest")
    return bundle.SerializeToString(deterministic=True)

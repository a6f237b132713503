"""The libraries of kernels in Inductor's cache folder, named by what they contain.

A library that is there is not fetched again. Its bytes are compared with the digest in a verified
artifact before they are used, so whoever can write to the folder cannot replace it.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from lazyfx.shared.native import torch_inductor
from lazyfx.shared.native.native_request import KEPT_PREFIX_BYTES, MAX_KEPT_BYTES
from lazyfx.v1 import compiler_pb2 as pb

_NAME: Final = re.compile(r"k([0-9a-f]{64})\.so")


def library_file(data: bytes) -> Path:
    """Write a library to a file atomically; an existing file is compared first."""
    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"k{hashlib.sha256(data).hexdigest()}.so"
    try:
        if path.read_bytes() == data:
            return path
    except OSError:
        pass
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".so")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def kept_kernels() -> bytes:
    """The libraries here, as a request names them; the newest ones if there are many."""
    found: list[tuple[float, str]] = []
    try:
        with os.scandir(_folder()) as entries:
            found.extend(
                (entry.stat(follow_symlinks=False).st_mtime, name[1])
                for entry in entries
                if (name := _NAME.fullmatch(entry.name))
            )
    except OSError:
        return b""
    newest = sorted(found, reverse=True)[: MAX_KEPT_BYTES // KEPT_PREFIX_BYTES]
    return b"".join(sorted(bytes.fromhex(name)[:KEPT_PREFIX_BYTES] for _, name in newest))


def with_kept_kernels(data: bytes) -> bytes | None:
    """A serialized NativeBundle, with the libraries that were left out of it.

    Args:
        data: From a server that was told of `kept_kernels`; verified.

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
    for kernel in left_out:
        try:
            kernel.library = (_folder() / f"k{kernel.digest.hex()}.so").read_bytes()
        except OSError:
            return None
        if hashlib.sha256(kernel.library).digest() != kernel.digest:
            return None
        kernel.ClearField("digest")
    return bundle.SerializeToString(deterministic=True)


def _folder() -> Path:
    return Path(torch_inductor.cache_dir()) / "lazyfx"

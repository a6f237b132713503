"""The C++ kernels of an artifact, identified by their sources, and provided when it is loaded.

torch's serialized artifacts contain C++ sources, not libraries, so a process that loads them would
compile each again. So the server adds the libraries, each with the digest of its source, and the
client gives Inductor these libraries instead of a compiler. Sources alone identify them: the paths
of torch and of the compiler, which Inductor's own cache keys include, do not matter.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lazyfx.errors import ArtifactError
from lazyfx.shared.native import torch_inductor

_Load = Callable[[], Any]
_ORIGINAL = torch_inductor.CppCodeCache.load_async.__func__  # type: ignore[attr-defined]
_SIGNATURE = inspect.signature(_ORIGINAL)

# Inductor's cache is a process-wide class: only one thread at a time may replace it.
_patching = threading.RLock()


@contextmanager
def use_kernels(libraries: Mapping[bytes, bytes]) -> Iterator[None]:
    """Provide these libraries to Inductor within the block; no compiler runs in this thread.

    Args:
        libraries: Bytes of libraries by the digest of their sources.

    Raises:
        ArtifactError: Within the block, if Inductor needs a missing library.
    """
    here = threading.get_ident()

    def load_async(cls: Any, *args: Any, **kwargs: Any) -> _Load:
        if threading.get_ident() != here:
            original: _Load = _ORIGINAL(cls, *args, **kwargs)
            return original
        data = libraries.get(bound_arguments(cls, args, kwargs).digest)
        if data is None:
            raise ArtifactError("the native artifact lacks a kernel that it needs")
        loaded: list[Any] = []

        def load() -> Any:
            if not loaded:
                path = _library_file(data)
                loaded.append(cls._load_library(str(path), path.stem))
            return loaded[0]

        return load

    with loading_kernels_with(load_async):
        yield


@contextmanager
def loading_kernels_with(load_async: Callable[..., Any]) -> Iterator[None]:
    """Have Inductor call this function for each kernel within the block."""
    cache: Any = torch_inductor.CppCodeCache
    with _patching:
        before = cache.__dict__["load_async"]
        cache.load_async = classmethod(load_async)
        try:
            yield
        finally:
            cache.load_async = before


class KernelArguments(inspect.BoundArguments):
    """The arguments of one call of `load_async`, with their defaults."""

    @property
    def digest(self) -> bytes:
        """SHA-256 of what Inductor compiles, which identifies a kernel in an artifact."""
        values = self.arguments
        digest = hashlib.sha256()
        extra_flags = " ".join(values["extra_flags"])
        for part in (
            values["cls"].__name__,
            values["main_code"],
            values["optimized_code"] or "",
            values["device_type"],
            extra_flags,
        ):
            data = str(part).encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.digest()


def bound_arguments(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> KernelArguments:
    """The arguments of a call of `load_async`."""
    given = _SIGNATURE.bind(cls, *args, **kwargs)
    given.apply_defaults()
    return KernelArguments(_SIGNATURE, given.arguments)


def _library_file(data: bytes) -> Path:
    """Write a library to a file atomically; an existing file is compared first."""
    folder = Path(torch_inductor.cache_dir()) / "lazyfx"
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

"""Loads a native artifact as a callable."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from lazyfx.artifacts.kernel_files import library_file
from lazyfx.errors import ArtifactError
from lazyfx.shared.native import kernels, torch_inductor
from lazyfx.shared.native.text_tokens import with_texts
from lazyfx.v1 import compiler_pb2 as pb

_NONE: Final[Mapping[str, str]] = MappingProxyType({})


def load(
    bundle: pb.NativeBundle, texts: Mapping[str, str] = _NONE, folder: Path | None = None
) -> Callable[..., Any]:
    """Load an artifact, without a compiler.

    It contains a pickle of torch's: call this only with the result of `read_artifact` for an
    artifact whose signature has been verified.

    Args:
        bundle: From `read_artifact`.
        texts: The strings of the compiled graph by token, to show in errors of forward and
            backward.
        folder: Where its libraries are kept, from `kernel_folder`; None if they are not.

    Returns:
        A function of the graph's inputs; differentiable if the graph was compiled with gradients.

    Raises:
        ArtifactError: It cannot be loaded.
    """
    libraries = {kernel.source: kernel.library for kernel in bundle.kernels}
    try:
        with _use_kernels(libraries, folder), _restoring_errors(texts):
            # This unpickles. The bytes are trusted: the artifact's signature was verified before
            # `read_artifact`, and only the server's key can create one.
            loaded: Callable[..., Any] = torch_inductor.AOTCompiledArtifact.deserialize(
                bundle.compiled
            )
    except ArtifactError:
        raise
    except Exception as error:  # unpickling and dlopen raise errors of every kind
        raise ArtifactError(
            f"the native artifact cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return loaded


@contextmanager
def _use_kernels(libraries: Mapping[bytes, bytes], folder: Path | None) -> Iterator[None]:
    """Provide these libraries to Inductor within the block; no compiler runs in this thread.

    Args:
        libraries: Bytes of libraries by the digest of their sources.
        folder: Where they are kept.

    Raises:
        ArtifactError: Within the block, if Inductor needs a missing library.
    """
    here = threading.get_ident()

    def load_async(cls: Any, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        if threading.get_ident() != here:
            return kernels.LOAD_ASYNC(cls, *args, **kwargs)
        data = libraries.get(kernels.bound_arguments(cls, args, kwargs).digest)
        if data is None:
            raise ArtifactError("the native artifact lacks a kernel that it needs")
        loaded: list[Any] = []

        def load() -> Any:
            if not loaded:
                with library_file(data, folder) as path:
                    loaded.append(cls._load_library(str(path), path.stem))
            return loaded[0]

        return load

    with kernels.loading_kernels_with(load_async):
        yield


@contextmanager
def _restoring_errors(texts: Mapping[str, str]) -> Iterator[None]:
    """Errors of code loaded within the block show these strings.

    Use only within `_use_kernels`, which admits one thread at a time.
    """
    compiled: Any = torch_inductor.CompiledFxGraph
    original = compiled.after_deserialization

    def after_deserialization(self: Any, *args: Any, **kwargs: Any) -> Any:
        path = original(self, *args, **kwargs)
        self.current_callable = with_texts(self.current_callable, texts)
        return path

    compiled.after_deserialization = after_deserialization
    try:
        yield
    finally:
        compiled.after_deserialization = original

"""A native artifact becomes something that can be called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lazyfx.errors import ArtifactError
from lazyfx.native import kernels, torch_names
from lazyfx.v1 import compiler_pb2 as pb


def load(bundle: pb.NativeBundle) -> Callable[..., Any]:
    """Load an artifact, without a compiler.

    torch's part of it is a pickle: call this only with what `read_made` gave for an artifact
    whose signature has been verified.

    Returns:
        A function of the graph's inputs; autograd goes through it if the graph was compiled
        with gradients.

    Raises:
        ArtifactError: It cannot be loaded.
    """
    libraries = {kernel.source: kernel.library for kernel in bundle.kernels}
    try:
        with kernels.handed_over(libraries):
            # This unpickles. No stranger's bytes come here: the artifact's signature was verified
            # before `read_made`, and nobody but the server's signer can make one.
            loaded: Callable[..., Any] = torch_names.AOTCompiledArtifact.deserialize(
                bundle.compiled
            )
    except ArtifactError:
        raise
    except Exception as error:  # unpickling and dlopen raise errors of every kind
        raise ArtifactError(
            f"the native artifact cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return loaded

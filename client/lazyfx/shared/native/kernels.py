"""The C++ kernels of an artifact are identified by their sources.

torch's serialized artifacts contain C++ sources, not libraries, so a process that loads them would
compile each again. So the server adds the libraries, each with the digest of its source, and the
client gives Inductor these libraries instead of a compiler. Sources alone identify them: the paths
of torch and of the compiler, which Inductor's own cache keys include, do not matter.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from lazyfx.shared.native import torch_inductor

LOAD_ASYNC: Final[Callable[..., Callable[[], Any]]] = (
    torch_inductor.CppCodeCache.load_async.__func__  # type: ignore[attr-defined]
)
"""How torch compiles a kernel: called with a class of its cache, returns what loads the library."""
_SIGNATURE: Final = inspect.signature(LOAD_ASYNC)

# Inductor's cache is a process-wide class: only one thread at a time may replace it.
_patching = threading.RLock()


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

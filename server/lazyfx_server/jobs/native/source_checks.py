"""What Inductor writes is read before it is compiled or loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lazyfx_server.jobs.native.torch_inductor_codegen import observing_sources
from lazyfx_server.security.native_source import NativeSourceRefused, check_cpp, check_wrapper


@contextmanager
def checked_sources() -> Iterator[None]:
    """Refuse, within the block, to compile or load a source that is not like Inductor's.

    Raises:
        NativeSourceRefused: There was one, whatever torch made of the error.
    """
    refused: list[NativeSourceRefused] = []

    def checking(check: Callable[[str], None]) -> Callable[[str], None]:
        def checked(source: str) -> None:
            try:
                check(source)
            except NativeSourceRefused as error:
                refused.append(error)
                raise

        return checked

    try:
        with observing_sources(checking(check_cpp), checking(check_wrapper)):
            yield
    except Exception:
        if refused:
            raise refused[0] from None
        raise
    if refused:
        raise refused[0]

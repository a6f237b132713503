"""Checks Inductor's source before it is compiled or loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lazyfx_server.jobs.native.torch_inductor_codegen import observing_sources
from lazyfx_server.security.native_source import NativeSourceRefused, check_cpp, check_wrapper


@contextmanager
def checked_sources() -> Iterator[None]:
    """Within the block, refuse to compile or load source that does not look like Inductor's.

    Raises:
        NativeSourceRefused: There was such source, whatever torch turned the error into.
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

"""Starts the warm start when dynamo begins to compile, before there is a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lazyfx.backend.options import read_options
from lazyfx.backend.sessions import session_for
from lazyfx.backend.warm_start.torch_compile_start import compiling_with, on_compile_start
from lazyfx.calls import forking


def start_early(backend: Callable[..., Any]) -> None:
    """From now on, have the session of a backend start when dynamo begins to compile for it.

    Not before, and not when it compiles for another backend: a process that uses gRPC cannot fork
    children that use it.

    Args:
        backend: What torch.compile calls; its options say which server.
    """

    def started() -> None:
        # Dynamo calls this, and an error would end the compile; the graph will show it.
        try:
            if not forking.is_forked():
                _start(backend)
        except Exception:  # noqa: BLE001, S110
            pass

    on_compile_start(started)


def _start(backend: Callable[..., Any]) -> None:
    given = compiling_with(backend)
    if given is None:
        return
    options = read_options(given.get("options"), given.get("mode"))
    if options.prefetch and options.compile == "inductor":
        session_for(options.address).warm_start.start()

"""Shows the progress of a long compile: a line on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from lazyfx.shared.answers.downloads import OnProgress
from lazyfx.v1 import compiler_pb2 as pb

_log = logging.getLogger("lazyfx")
# Minimum seconds between log lines of one compile.
_LOG_SECONDS: Final = 10.0


@contextmanager
def show_progress(nodes: int) -> Iterator[OnProgress]:
    """Show the progress of the compile of one graph.

    With several ranks, only the first shows it. On a terminal it is one line that is redrawn;
    elsewhere it is a line of the logger "lazyfx" (INFO) every ten seconds.

    Args:
        nodes: Nodes of the graph.

    Yields:
        A function to call with progress reports, from any thread.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda _: None
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(f"lazyfx: a graph of {nodes} nodes") as status:
            yield lambda progress: status.update(_words(nodes, progress))
    else:
        last = [time.monotonic()]

        def write(progress: pb.ArtifactProgress) -> None:
            if time.monotonic() - last[0] >= _LOG_SECONDS:
                last[0] = time.monotonic()
                _log.info("%s", _words(nodes, progress))

        yield write


def _words(nodes: int, progress: pb.ArtifactProgress) -> str:
    done = f", {progress.kernels} kernels" if progress.kernels else ""
    done += f" ({progress.known_kernels} known)" if progress.known_kernels else ""
    return (
        f"lazyfx: the server is compiling a graph of {nodes} nodes: "
        f"{progress.stage}{done}, {progress.seconds:.0f} s"
    )

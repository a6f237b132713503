"""Runs the ranks of a job one after the other, each in a fork of this process.

A rank needs a process of its own: what a script does when it is imported (its rank in a module's
constant, a class that it registers, the state of random generators) happens once in a process, and
dynamo's caches and counters last as long as it does. A fork has torch and dynamo imported already,
so that a rank costs what the script costs. It has no thread and no connection of this process,
which has opened none, and has looked for no device.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import multiprocessing.util
import os
import sys
import traceback
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from lazyfx.warming.rank_runs import RankRun
from lazyfx.warming.rank_script import Job, run_rank
from lazyfx.warming.torch_fake_groups import import_early

# A process of the script that does not end when it is told to is killed after this time.
_GRACE_SECONDS: Final = 5.0


@dataclass(frozen=True)
class FinishedRank:
    """A rank that has run.

    Attributes:
        run: What it did.
        folder: Its recorded graphs.
    """

    run: RankRun
    folder: Path


def run_ranks(job: Job, ranks: Sequence[int], folder: Path) -> Iterator[FinishedRank]:
    """Run ranks in this order.

    Args:
        job: The job.
        ranks: Which of its ranks.
        folder: An existing private folder.

    Yields:
        Each rank when it has ended.
    """
    import_early()
    messages = folder / "messages"
    messages.mkdir()
    for rank in ranks:
        own = folder / f"rank{rank}"
        own.mkdir()
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if not process:
            _be_rank(job, rank, own, messages)
        _, status = os.waitpid(process, 0)
        try:
            run = RankRun.read(own)
        except FileNotFoundError:
            code = os.waitstatus_to_exitcode(status)
            ending = f"status {code}" if code >= 0 else f"signal {-code}"
            run = RankRun(rank, problem=f"its process ended with {ending}")
        yield FinishedRank(run, own)


def _be_rank(job: Job, rank: int, folder: Path, messages: Path) -> NoReturn:
    """The whole life of a forked process; nothing of its parent's stack runs in it."""
    status = 1
    _take_over_exit()
    try:
        run_rank(job, rank, folder, messages)
        status = 0
    except BaseException:  # noqa: BLE001 - this is the end of the process
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()  # noqa: SLF001 - those of the script first
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _take_over_exit() -> None:
    """Make the end of this fork clean up after the script, and after nothing of the parent.

    What the libraries do at the end of every process was registered in the parent, once.
    """
    atexit._clear()  # noqa: SLF001 - the parent's own
    # Such as the one that removes the parent's temporary folder.
    finalizers: Any = weakref.finalize
    for finalizer in finalizers._registry:  # noqa: SLF001
        finalizer.atexit = False
    # They run in the opposite order.
    atexit.register(logging.shutdown)
    atexit.register(finalizers._exitfunc)  # noqa: SLF001
    atexit.register(_end_processes)


def _end_processes() -> None:
    """End the script's workers, whether or not they are daemons: their rank stopped midway."""
    processes = multiprocessing.active_children()
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_GRACE_SECONDS)
        if process.is_alive():
            process.kill()
    multiprocessing.util._exit_function()  # type: ignore[attr-defined]  # noqa: SLF001

"""Runs the ranks of a job one after the other, each in a fork of this process.

A rank needs a process of its own: what a script does when it is imported (its rank in a module's
constant, a class that it registers, the state of random generators) happens once in a process, and
dynamo's caches and counters last as long as it does. A fork has torch and dynamo imported already,
so that a rank costs what the script costs. It has no thread and no connection of this process,
which has opened none, and has looked for no device.
"""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lazyfx.warming.rank_runs import RankRun
from lazyfx.warming.rank_script import Job, run_rank
from lazyfx.warming.torch_fake_groups import import_early


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
    atexit._clear()  # noqa: SLF001 - the parent's, such as that it removes its temporary folder
    try:
        run_rank(job, rank, folder, messages)
        status = 0
    except BaseException:  # noqa: BLE001 - this is the end of the process
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()  # noqa: SLF001 - those of the script
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)

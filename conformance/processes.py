"""Runs cases one after another in a separate process, which is replaced if it hangs or dies."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection
from typing import Protocol, TypeVar

Result = TypeVar("Result")
Try = Callable[[str], list[Result]]

# Captures leave much state in a process (dynamo's and torch.fx's caches).
_CASES_A_PROCESS = 100
_START_SECONDS = 240.0
# Processes are forks of one that has imported these.
_PRELOADED = ["conformance.preloading"]


class Work(Protocol[Result]):
    """What is done with each case. It is sent to the process, so it can be pickled.

    Attributes:
        seconds: Time limit per case.
    """

    seconds: float

    def trying(self) -> AbstractContextManager[Try[Result]]:
        """Prepare the process; the function tries the case of a name."""
        ...

    def failed(self, name: str, outcome: str, note: str) -> Result:
        """The result of a case that could not be tried to its end: it was "slow", or a "fault"."""
        ...


def run(
    names: Sequence[str], work: Work[Result], cases_a_process: int = _CASES_A_PROCESS
) -> Iterator[tuple[str, list[Result]]]:
    """The results of each case.

    Raises:
        RuntimeError: A process did not start.
    """
    left = list(names)
    while left:
        with _process(work) as pipe:
            for name in left[:cases_a_process]:
                made, alive = _ask(pipe, name, work)
                left.remove(name)
                yield name, made
                if not alive:
                    break


@contextmanager
def _process(work: Work[Result]) -> Iterator[Connection]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, work), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(_START_SECONDS) or ours.recv() != "ready":
            raise RuntimeError("a process for the cases did not start")
        yield ours
    finally:
        process.kill()
        process.join()
        ours.close()


def _ask(pipe: Connection, name: str, work: Work[Result]) -> tuple[list[Result], bool]:
    """The results, and whether the process can take another case."""
    pipe.send(name)
    try:
        if pipe.poll(work.seconds):
            return pipe.recv(), True
    except EOFError:
        return [work.failed(name, "fault", "the process died")], False
    return [work.failed(name, "slow", f"took more than {work.seconds:g} s")], False


def _answer(pipe: Connection, work: Work[Result]) -> None:
    with work.trying() as attempt:
        pipe.send("ready")
        while True:
            try:
                name = pipe.recv()
            except EOFError:
                return
            try:
                made = attempt(name)
            except Exception as error:  # noqa: BLE001 - the others are still to be tried
                made = [work.failed(name, "fault", f"{type(error).__name__}: {error}")]
            pipe.send(made)

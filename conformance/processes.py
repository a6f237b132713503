"""Runs cases one after another in a separate process, which is replaced if it hangs or dies."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import lazyfx
from conformance.cases import DTYPES, Case, modules, operators
from conformance.run import Finding, findings, prepare

# Captures leave much state in a process (dynamo's and torch.fx's caches).
_CASES_A_PROCESS = 100
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Asked:
    """How cases are tried.

    Attributes:
        address: Address of the server.
        ways: Captures.
        calls: Maximum calls per case.
        seconds: Time limit per case.
        dtypes: The first of these that a case supports is used.
    """

    address: str
    ways: Sequence[str]
    calls: int
    seconds: float
    dtypes: Sequence[str] = DTYPES


def every_case() -> list[Case]:
    """The cases of both databases."""
    return [*operators(), *modules()]


def run(names: Sequence[str], asked: Asked) -> Iterator[tuple[str, list[Finding]]]:
    """The findings of each case."""
    left = list(names)
    while left:
        with _process(asked) as pipe:
            for name in left[:_CASES_A_PROCESS]:
                made, alive = _ask(pipe, name, asked.seconds)
                left.remove(name)
                yield name, made
                if not alive:
                    break


@contextmanager
def _process(asked: Asked) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, asked), daemon=True)
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


def _ask(pipe: Connection, name: str, seconds: float) -> tuple[list[Finding], bool]:
    """The findings, and whether the process can take another case."""
    pipe.send(name)
    try:
        if pipe.poll(seconds):
            return pipe.recv(), True
    except EOFError:
        return [Finding(name, "", 0, "", "fault", "the process died")], False
    return [Finding(name, "", 0, "", "slow", f"took more than {seconds:g} s")], False


def _answer(pipe: Connection, asked: Asked) -> None:
    prepare()
    cases = {case.name: case for case in every_case()}
    with lazyfx.connect(asked.address) as client:
        pipe.send("ready")
        while True:
            try:
                name = pipe.recv()
            except EOFError:
                return
            try:
                made = [*findings(cases[name], asked.ways, client, asked.calls, asked.dtypes)]
            except Exception as error:  # noqa: BLE001 - the others are still to be tried
                made = [Finding(name, "", 0, "", "fault", f"{type(error).__name__}: {error}")]
            pipe.send(made)

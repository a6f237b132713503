"""Processes that have torch alone, and what they find in saved files."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from typing_extensions import Self

_PROGRAM = Path(__file__).with_name("loader.py")


@dataclass
class Loader:
    """Loads saved files and calls each twice; one process for each set of imports.

    Attributes:
        interpreter: The command line of Python.
        seconds: Time limit per file.
    """

    interpreter: Sequence[str] = (sys.executable,)
    seconds: int = 300
    _processes: dict[tuple[str, ...], subprocess.Popen[str]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        """Processes start when they are needed."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the processes."""
        for process in self._processes.values():
            _end(process)
        self._processes.clear()

    def call(self, path: Path, imports: tuple[str, ...] = ()) -> Any:
        """What a file gives: the results of two calls, or text: why there are none.

        A process that has ended is replaced at the next call.

        Args:
            path: The file; its inputs are next to it (`loader.py`).
            imports: Modules that the function that reads it imports itself.
        """
        process = self._processes.get(imports)
        if process is None:
            process = self._processes[imports] = self._start(imports)
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{self.seconds} {path}\n")
            process.stdin.flush()
        said = process.stdout.readline().strip()
        if not said:
            _end(self._processes.pop(imports))
            return "the process that loads files has ended"
        written = path.with_name(f"{path.name}.out")
        if said != "written" or not written.exists():
            return said
        # Written by our own program a moment ago.
        return torch.load(written, weights_only=False)

    def _start(self, imports: tuple[str, ...]) -> subprocess.Popen[str]:
        # -I keeps the current folder and packages of the user out.
        program = ["-I", "-W", "ignore", "-c", _PROGRAM.read_text("utf-8"), *imports]
        return subprocess.Popen(  # noqa: S603 - our own program
            [*self.interpreter, *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # warnings of torch
            text=True,
        )


def _end(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):
            stream.close()  # the program ends when its input does
    process.kill()
    process.wait()

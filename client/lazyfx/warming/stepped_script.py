"""Runs a training script as Python would, and stops it after some optimizer steps."""

from __future__ import annotations

import contextlib
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook


class SteppedScript:
    """A training script that takes a number of optimizer steps at most.

    Args:
        path: The script.
        arguments: Its arguments.
        most_steps: After so many steps it is stopped.

    Attributes:
        steps: The steps that it has taken.
    """

    def __init__(self, path: Path, arguments: Sequence[str], most_steps: int) -> None:
        self._path = path
        self._arguments = arguments
        self._most_steps = most_steps
        self.steps = 0

    def run(self) -> None:
        """Run it until it ends or has taken its steps; whatever it raises is raised."""
        hook = register_optimizer_step_post_hook(self._count)
        try:
            with self._as_main():
                runpy.run_path(str(self._path), run_name="__main__")
        except _EnoughSteps:
            pass
        finally:
            hook.remove()

    def _count(self, *_: object) -> None:
        self.steps += 1
        if self.steps >= self._most_steps:
            raise _EnoughSteps(0)

    @contextlib.contextmanager
    def _as_main(self) -> Iterator[None]:
        """The arguments and the module path that `python SCRIPT ARGUMENTS` has."""
        before = sys.argv, sys.path[0]
        sys.argv = [str(self._path), *self._arguments]
        sys.path[0] = str(self._path.parent.resolve())
        try:
            yield
        finally:
            sys.argv, sys.path[0] = before


class _EnoughSteps(SystemExit):
    """Stops the script."""

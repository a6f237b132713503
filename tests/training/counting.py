"""What a server did, by its metrics; what a process started, by a compiler that logs its calls."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import nursery
import shared_headers
from harness import metrics, total

# As many bytes as a pipe holds.
_TOKENS: Final = 65_536


def native_compiles(server: Any) -> int:
    """Native artifacts that the server has made."""
    samples = metrics(server.metrics_url)
    return int(total(samples, "lazyfx_native_compiles_total", result="made"))


def run_with_logging_compiler(
    program: str, folder: Path, **environment: str
) -> tuple[str, list[str]]:
    """Run a Python program where every C++ compiler logs its call and then fails.

    Returns:
        What the program printed, and the calls.
    """
    tools = folder / "tools"
    tools.mkdir()
    diary = folder / "diary"
    for name in ("g++", "gcc", "cc", "c++", "clang", "clang++", "ld"):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >> {diary}\nexit 1\n')
        tool.chmod(0o755)
    run = nursery.run(
        "inductor",
        ["-W", "always", "-c", program],
        env={
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
            ),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
            **environment,
        },
    )
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr, diary.read_text().splitlines() if diary.exists() else []


class CountedCompilers:
    """A C++ compiler that counts its runs, also in a sandbox in which it can write nowhere.

    Each run takes one byte from a pipe.

    Attributes:
        environment: Makes a server use it.
    """

    def __init__(self, folder: Path) -> None:
        pipe = folder / "tokens"
        os.mkfifo(pipe, 0o644)
        self._pipe = os.open(pipe, os.O_RDWR)
        os.write(self._pipe, b"\n" * _TOKENS)
        # What may be read is what the compiler says it reads, so also the pipe.
        tool = shared_headers.write_compiler(
            folder, f'case "$*" in *" -o "*) read -r token < {pipe};; esac'
        )
        self.environment = {"CXX": str(tool)}

    def runs(self) -> int:
        """How often it has compiled or linked something so far."""
        left = bytearray(4)
        fcntl.ioctl(self._pipe, termios.FIONREAD, left)
        return _TOKENS - int.from_bytes(left, sys.byteorder)

    def close(self) -> None:
        os.close(self._pipe)


@contextmanager
def counted_compilers() -> Iterator[CountedCompilers]:
    """A compiler that counts its runs, in a folder that every user can read."""
    with tempfile.TemporaryDirectory(prefix="lazyfx-compilers-") as name:
        Path(name).chmod(0o755)
        counted = CountedCompilers(Path(name))
        try:
            yield counted
        finally:
            counted.close()

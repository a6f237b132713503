"""What a server did, by its metrics; what a process started, by a compiler that logs its calls."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nursery
from harness import metrics, total


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

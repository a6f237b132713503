"""Confines the processes of native compiles, once they know the folder of their job."""

from __future__ import annotations

import os
import site
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from lazyfx_server.jobs.native.toolchain.compiler import Compiler
from lazyfx_server.security.sandbox import SYSTEM_PATHS, Policy, enter, readable_paths

_FILE_BYTES: Final = 4 << 30
_GPU: Final = Path("/dev/nvidiactl")
# What CUDA's driver reads about the machine.
_GPU_READS: Final = ("/proc/driver/nvidia", "/sys/bus/pci/devices", "/sys/devices", "/etc/nvidia")
# User ids that no distribution assigns to people or services.
USER: Final = 964_870


@dataclass(frozen=True)
class Confinement:
    """The confinement of a process of native compiles.

    Attributes:
        policy: The policy without the folder; None for no confinement.
    """

    policy: Policy | None

    @property
    def owner(self) -> int | None:
        """The user that must own the folders of jobs."""
        return None if self.policy is None else self.policy.user

    def enter(self, folder: Path, *also_readable: Path) -> None:
        """Irrevocably confine this process to a folder.

        Raises:
            SandboxError: A layer could not be entered; the job must not continue.
        """
        if self.policy is None:
            return
        _end_monitor()
        enter(
            replace(
                self.policy,
                writable=(*self.policy.writable, str(folder)),
                readable=(*self.policy.readable, *map(str, also_readable)),
            )
        )


def _end_monitor() -> None:
    """Stop tqdm's thread, which importing torch starts in a process that was not forked.

    Landlock would not apply to it.
    """
    bars = sys.modules.get("tqdm.std")
    monitor = None if bars is None else bars.tqdm.monitor
    if bars is not None and monitor is not None and monitor.is_alive():
        monitor.exit()
        bars.tqdm.monitor_interval = 0


def job_confinement(
    layers: tuple[str, ...], memory_bytes: int, user: int | None, compiler: Compiler
) -> Confinement:
    """The confinement of processes that hold graphs, run Inductor and load the compiled code.

    On hosts with GPUs they may open CUDA's device files, and run Triton's assembler and the host's
    compiler.
    """
    policy = Policy(
        layers, memory_bytes, readable_paths(), ("/dev/null",),
        profile="native", file_bytes=_FILE_BYTES, user=user,
    )  # fmt: skip
    if _GPU.exists():
        triton = Path(torch.__file__).parents[1] / "triton"
        policy = replace(
            policy,
            memory_bytes=None,
            readable=(*policy.readable, *_GPU_READS, *compiler.data),
            devices=tuple(map(str, Path("/dev").glob("nvidia*"))),
            executable=(*compiler.programs, *map(str, triton.rglob("bin/ptxas*"))),
            profile="programs",
        )
    return Confinement(policy)


def build_confinement(
    layers: tuple[str, ...], memory_bytes: int, user: int | None, compiler: Compiler
) -> Confinement:
    """The confinement of processes that compile one source.

    They read what a compiler reads: headers, libraries and its own files. All modules are imported
    before: Python's packages are among them only if they lie in a folder of libraries, as without a
    virtual environment.
    """
    beside = Path(compiler.path).parent / "../lib"  # the libraries of a compiler with its own
    return Confinement(
        Policy(
            layers,
            memory_bytes,
            (
                *SYSTEM_PATHS,
                *compiler.data,
                *compiler.include,
                *compiler.libraries,
                os.path.realpath(beside),
            ),
            ("/dev/null",),
            compiler.programs,
            profile="programs",
            file_bytes=_FILE_BYTES,
            user=user,
        )
    )


def other_user() -> tuple[int | None, str]:
    """The user that these processes can become, or None and the reason ("" if not started as root).

    That user must be able to read Python and torch.
    """
    if os.geteuid() != 0:
        return None, ""
    folders = [sys.prefix, sys.base_prefix, *site.getsitepackages(), torch.__path__[0]]
    if closed := _closed(folders):
        return None, f"{closed} is readable by root only"
    return USER, ""


def _closed(folders: Sequence[str]) -> str:
    """The first of these folders and their parents that other users cannot enter."""
    for folder in folders:
        real = Path(os.path.realpath(folder))
        for path in (real, *real.parents):
            if not path.stat().st_mode & stat.S_IXOTH:
                return str(path)
    return ""

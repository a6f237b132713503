"""Enters the sandbox: every layer that the kernel has, in order, or an error."""

from __future__ import annotations

import os
import resource
import site
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lazyfx_server.security.sandbox import landlock, seccomp
from lazyfx_server.security.sandbox.kernel import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, prctl

LAYERS: Final = ("privileges", "limits", "landlock", "seccomp")
"""The layers of a sandbox, in the order in which a process enters them."""

_MAX_FILES = 128
_MORE_TASKS = 4096
SYSTEM_PATHS: Final = (
    "/dev/null", "/dev/urandom", "/etc/ld.so.cache", "/etc/localtime", "/lib", "/lib64",
    "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu", "/usr/lib", "/usr/lib64",
    "/usr/local/lib", "/usr/share/zoneinfo",
)  # fmt: skip
"""The system's libraries, and what C libraries and torch read to count processors and memory."""


class SandboxError(Exception):
    """A layer that the kernel has could not be entered; the process must not continue."""


@dataclass(frozen=True)
class Policy:
    """What a confined process may do.

    Attributes:
        layers: A subset of LAYERS.
        memory_bytes: Address space that it may allocate beyond what it has; None for no bound, for
            drivers that reserve far more than they use.
        readable: Files and folders that it may read.
        writable: Folders that it may also write to.
        executable: Programs that it may run.
        devices: Device files that it may open and use with any ioctl.
        profile: Which system calls it may make.
        file_bytes: Maximum size of a file that it writes.
        user: The user id to switch to; None to keep the current user.
    """

    layers: tuple[str, ...]
    memory_bytes: int | None
    readable: tuple[str, ...]
    writable: tuple[str, ...] = ()
    executable: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    profile: seccomp.Profile = "passes"
    file_bytes: int = 0
    user: int | None = None


def available() -> tuple[str, ...]:
    """The layers that this kernel has."""
    has = {"landlock": landlock.version() > 0, "seccomp": seccomp.is_available()}
    return tuple(layer for layer in LAYERS if has.get(layer, sys.platform == "linux"))


def readable_paths() -> tuple[str, ...]:
    """Where Python, its packages and the system's libraries are; not the working directory."""
    found = [sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages(), *SYSTEM_PATHS]
    here = os.path.realpath(os.getcwd())  # noqa: PTH109 - as sys.path has it
    found += [path for path in sys.path if path and os.path.realpath(path) != here]
    roots = {"/", os.path.realpath(Path.home())}
    kept = [path for path in dict.fromkeys(found) if os.path.realpath(path) not in roots]
    return tuple(kept)


def enter(policy: Policy) -> None:
    """Irrevocably confine this process; call it after importing everything that it needs.

    Raises:
        SandboxError: A layer of the policy could not be entered.
    """
    try:
        if "privileges" in policy.layers:
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            prctl(PR_SET_DUMPABLE, 0)
        if policy.user is not None:
            _become(policy.user)
        if "limits" in policy.layers:
            _limit(policy)
        if "landlock" in policy.layers:
            _refuse_threads()
            landlock.confine(_allowed(policy))
        if "seccomp" in policy.layers:
            seccomp.confine(policy.profile, devices=bool(policy.devices))
    except (OSError, ValueError, OverflowError) as error:
        raise SandboxError(f"the sandbox could not be entered: {error}") from error


def _become(user: int) -> None:
    """Irrevocably switch to another user."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _refuse_threads() -> None:
    """Landlock confines the calling thread and its children, but not other existing threads."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        raise ValueError(f"{threads} threads were already running")


def _allowed(policy: Policy) -> Iterator[tuple[Path, int]]:
    for paths, rights in (
        (policy.readable, landlock.READ),
        (policy.writable, landlock.WRITE),
        (policy.executable, landlock.RUN),
        (policy.devices, landlock.DEVICE),
    ):
        for path in paths:
            yield Path(path), rights


def _limit(policy: Policy) -> None:
    used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    bounds = {
        resource.RLIMIT_NOFILE: _MAX_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if policy.memory_bytes is not None:
        bounds[resource.RLIMIT_AS] = used + policy.memory_bytes
    # The kernel counts the threads of all processes of a user, and a worker creates a few. seccomp
    # is what prevents new processes; this bounds the damage where seccomp is missing.
    bounds[resource.RLIMIT_NPROC] = _tasks() + _MORE_TASKS
    # A log in a file could no longer be written.
    if policy.file_bytes or not any(_is_file(number) for number in (1, 2)):
        bounds[resource.RLIMIT_FSIZE] = policy.file_bytes
    for which, bound in bounds.items():
        _, hard = resource.getrlimit(which)
        most = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(which, (most, most))


def _tasks() -> int:
    """The number of threads on this machine, of all users."""
    running_and_all = Path("/proc/loadavg").read_text("ascii").split()[3]
    return int(running_and_all.partition("/")[2])


def _is_file(number: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(number).st_mode)
    except OSError:
        return False

"""Refuses new work while the memory is nearly used up, before the kernel kills processes.

The limit is that of the control group (cgroup v2) with the least memory left among those that the
server is in; without one, it is the memory of the machine. Like kubelet, this does not count file
pages that the kernel can drop at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lazyfx_server.errors import UnavailableError

CHECK_SECONDS: Final = 0.5
"""How often the memory is checked."""

# Enough for every machine: with so much left, no share of its memory is too small.
MOST_RESERVE: Final = 2 * 2**30
# Percent of the time in which all tasks wait for memory, from which on twice as much is kept.
_STALLED: Final = 10.0
# More must be left than the reserve before work is accepted again.
_HYSTERESIS: Final = 1.25
_RETRY_SECONDS: Final = 2.0

_log = logging.getLogger("lazyfx_server")


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """The memory of a control group, or of the machine.

    Attributes:
        used: Bytes in use.
        limit: Bytes that may be used.
        stalled: Percent of the last ten seconds in which all tasks waited for memory.
    """

    used: int
    limit: int
    stalled: float = 0.0

    @property
    def left(self) -> int:
        """Bytes that may still be used."""
        return max(0, self.limit - self.used)


class MemoryFiles:
    """Reads the memory in use from the kernel's files.

    Args:
        proc: Where procfs is mounted.
        cgroups: Where the cgroup v2 hierarchy is mounted.
    """

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc = proc
        self._groups = tuple(_groups(proc, cgroups))

    def read(self) -> MemoryUse | None:
        """The memory in use where the least is left; None if it cannot be read."""
        found = [use for group in self._groups if (use := _use_of_group(group)) is not None]
        return min(found, key=lambda use: use.left, default=None) or self._use_of_machine()

    def _use_of_machine(self) -> MemoryUse | None:
        try:
            lines = (self._proc / "meminfo").read_text("ascii").splitlines()
            numbers = dict(line.split(":", 1) for line in lines)
            total, available = (
                1024 * int(numbers[name].split()[0]) for name in ("MemTotal", "MemAvailable")
            )
        except (OSError, ValueError, KeyError, IndexError):
            return None
        return MemoryUse(total - available, total, _stalled(self._proc / "pressure" / "memory"))


def _groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """The folders of the control groups of this process, the innermost first."""
    try:
        lines = (proc / "self" / "cgroup").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        if line.startswith("0::"):
            group = Path(line.removeprefix("0::").lstrip("/"))
            yield from (cgroups / part for part in (group, *group.parents))


def _use_of_group(group: Path) -> MemoryUse | None:
    """The memory of a control group; None without a limit."""
    try:
        limit = int((group / "memory.max").read_text("ascii"))
        used = int((group / "memory.current").read_text("ascii"))
        stat = (group / "memory.stat").read_text("ascii").splitlines()
        droppable = sum(int(line.split()[1]) for line in stat if line.startswith("inactive_file "))
    except (OSError, ValueError, IndexError):
        return None  # "max", or there is no such file
    return MemoryUse(max(0, used - droppable), limit, _stalled(group / "memory.pressure"))


def _stalled(file: Path) -> float:
    try:
        for line in file.read_text("ascii").splitlines():
            if line.startswith("full avg10="):
                return float(line.split()[1].removeprefix("avg10="))
    except (OSError, ValueError, IndexError):
        pass  # a kernel without PSI
    return 0.0


class MemoryGuard:
    """Decides whether new work is accepted, and frees memory while it is not.

    Args:
        read: Returns the memory in use; see `MemoryFiles.read`.
        mark: The part of the memory above which new work is refused; 1 for never.
        free_memory: Called at each check while work is refused.
    """

    def __init__(
        self,
        read: Callable[[], MemoryUse | None],
        mark: float,
        free_memory: Callable[[], None],
    ) -> None:
        self._read = read
        self._mark = mark
        self._free_memory = free_memory
        self._use: MemoryUse | None = None
        self._refused = 0
        self.is_refusing = False

    @property
    def used_part(self) -> float:
        """The part of the memory that is in use; 0 before the first check."""
        return self._use.used / self._use.limit if self._use and self._use.limit else 0.0

    def refusal(self) -> UnavailableError | None:
        """Why new work is refused at present; None if it is accepted."""
        if not self.is_refusing:
            return None
        self._refused += 1
        return UnavailableError(
            f"the memory of the server is {self.used_part:.0%} used; it answers from its cache, "
            "and compiles again when more memory is free (setting memory_mark)",
            retry_after=_RETRY_SECONDS,
        )

    async def check(self) -> None:
        """Check the memory once."""
        use = self._use = await asyncio.to_thread(self._read)
        if use is None:
            return
        reserve = min((1.0 - self._mark) * use.limit, float(MOST_RESERVE))
        if use.stalled >= _STALLED:
            reserve *= 2
        if self.is_refusing:
            reserve *= _HYSTERESIS
        if use.left < reserve:
            self._begin(use)
            self._free_memory()
        elif self.is_refusing:
            self.is_refusing = False
            _log.warning(
                "enough memory is free again (%d of %d MiB used); %d requests were refused",
                use.used >> 20, use.limit >> 20, self._refused,
            )  # fmt: skip

    def _begin(self, use: MemoryUse) -> None:
        if self.is_refusing:
            return
        self.is_refusing, self._refused = True, 0
        _log.warning(
            "%d of %d MiB of memory are used, and tasks wait for memory %g%% of the time: "
            "new compiles are refused until more is free (setting memory_mark)",
            use.used >> 20, use.limit >> 20, use.stalled,
        )  # fmt: skip

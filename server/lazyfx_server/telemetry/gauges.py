"""Where the values of gauges come from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


class TierLevels(Protocol):
    """Statistics of one tier of the store; `StoreStats` implements it."""

    @property
    def entries(self) -> int:
        """Number of entries."""

    @property
    def bytes(self) -> int:
        """Bytes that they occupy."""

    @property
    def limit_bytes(self) -> int:
        """The bound on `bytes`."""

    @property
    def evictions(self) -> int:
        """Entries evicted."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of one device that the workers see.

    Attributes:
        device: E.g. "cuda:0".
        total_bytes: Its total memory.
        free_bytes: Its free memory at the last query.
    """

    device: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Gauges:
    """Sources of gauge values, called at each scrape, in any thread.

    Attributes:
        store: Statistics of each tier by name.
        stores_in_use: Whether each remote tier is asked at present, by name.
        in_flight: Running jobs by stage, "compile" and "render".
        backlog: Estimated seconds in which the workers of each pool would finish what they have,
            by the pool's name.
        memory_used: The part of the memory that is in use.
        refusing: Whether new work is refused because of it.
        workers: Worker processes.
        devices: Memory of the devices that workers see.
        sandbox: Active layers of the workers' sandbox.
        native_sandbox: Active layers around native compiles; empty if native compiles are off.
        upstream_in_use: Whether the upstream is asked at present; None without one.
        engine: Of the engine that runs jobs: "connected" (0 or 1), "nodes" that run jobs, "refused"
            nodes; empty without one.
    """

    store: Callable[[], Mapping[str, TierLevels]] = dict
    stores_in_use: Callable[[], Mapping[str, bool]] = dict
    in_flight: Callable[[], Mapping[str, int]] = dict
    backlog: Callable[[], Mapping[str, float]] = dict
    memory_used: Callable[[], float] = float
    refusing: Callable[[], bool] = bool
    workers: Callable[[], int] = int
    devices: Callable[[], Iterable[DeviceMemory]] = tuple
    sandbox: Callable[[], Collection[str]] = tuple
    native_sandbox: Callable[[], Collection[str]] = tuple
    upstream_in_use: Callable[[], bool | None] = lambda: None
    engine: Callable[[], Mapping[str, int]] = dict

"""Where the values of gauges come from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


class TierLevels(Protocol):
    """What a tier of the store holds; `StoreStats` is one."""

    @property
    def entries(self) -> int:
        """Entries held."""

    @property
    def bytes(self) -> int:
        """Bytes that they take."""

    @property
    def limit_bytes(self) -> int:
        """The bound on `bytes`."""

    @property
    def evictions(self) -> int:
        """Entries dropped to keep the bound."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of one device that the workers see.

    Attributes:
        device: E.g. "cuda:0".
        total_bytes: All of its memory.
        free_bytes: What is free, when last asked.
    """

    device: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Gauges:
    """Where the values of gauges come from: called at each scrape, in any thread.

    Attributes:
        store: Levels of each tier by its name.
        in_flight: Jobs under way by stage, "compile" and "render".
        workers: Worker processes.
        devices: Memory of the devices that workers see.
        sandbox: Layers of the sandbox that hold.
        native_sandbox: Those around native compiles; none when there are no such compiles.
    """

    store: Callable[[], Mapping[str, TierLevels]] = dict
    in_flight: Callable[[], Mapping[str, int]] = dict
    workers: Callable[[], int] = int
    devices: Callable[[], Iterable[DeviceMemory]] = tuple
    sandbox: Callable[[], Collection[str]] = tuple
    native_sandbox: Callable[[], Collection[str]] = tuple

"""What is known of a Ray cluster: whether it answers, its nodes, and the slots that are free."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

_log = logging.getLogger(__name__)

_MAX_REASON: Final = 300


@dataclass
class Node:
    """A node that runs jobs.

    Attributes:
        id: Ray's id of it.
        host: Its host name.
        slots: Jobs that it runs at a time, by pool.
        description: What its `NodePools.start` returned.
        busy: Jobs that it runs now, by pool.
    """

    id: str
    host: str
    slots: Mapping[str, int]
    description: bytes
    busy: dict[str, int] = field(default_factory=dict)

    def free(self, pool: str) -> int:
        """Jobs that it could begin now."""
        return self.slots.get(pool, 0) - self.busy.get(pool, 0)


@dataclass(frozen=True)
class EngineStatus:
    """The state of the engine.

    Attributes:
        connected: Whether the head node answers.
        nodes: Number of nodes that run jobs.
        refused: Number of nodes that must not.
        problem: Why no jobs can run; empty if they can.
    """

    connected: bool
    nodes: int
    refused: int
    problem: str

    def levels(self) -> dict[str, int]:
        """The numbers among them, by name."""
        return {"connected": self.connected, "nodes": self.nodes, "refused": self.refused}


class ClusterState:
    """The nodes of a cluster, and who waits for them.

    Args:
        address: The cluster's, for the log.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._listeners: list[Callable[[], None]] = []
        self._nodes: dict[str, Node] = {}
        self._refused: dict[str, str] = {}
        self._connected = False
        self._problem = "not connected yet"
        self._changed = asyncio.Condition()
        self._notifying: set[asyncio.Task[None]] = set()

    @property
    def nodes(self) -> list[Node]:
        """The nodes that run jobs."""
        return list(self._nodes.values())

    @property
    def connected(self) -> bool:
        """Whether the head node answers."""
        return self._connected

    @property
    def status(self) -> EngineStatus:
        """The state now."""
        problem = self._problem
        if self._connected and not self._nodes:
            problem = "the cluster has no node with the resource lazyfx that can be used"
            if self._refused:
                problem += f": {next(iter(self._refused.values()))}"
        return EngineStatus(self._connected, len(self._nodes), len(self._refused), problem)

    def listen(self, on_change: Callable[[], None]) -> None:
        """Have this called when a node has come or gone."""
        self._listeners.append(on_change)

    async def wait_until(self, true: Callable[[], bool]) -> None:
        """Wait until something holds that depends on nodes and their jobs."""
        async with self._changed:
            await self._changed.wait_for(true)

    def has(self, node: Node) -> bool:
        """Whether a node is still there."""
        return self._nodes.get(node.id) is node

    def take(self, node: Node, pool: str) -> None:
        """Hold a slot of a node."""
        node.busy[pool] = node.busy.get(pool, 0) + 1

    def give_back(self, node: Node, pool: str) -> None:
        """Give a slot back."""
        node.busy[pool] -= 1
        self.wake()

    def connect(self) -> None:
        """The head node answers."""
        if not self._connected:
            self._connected, self._problem = True, ""
            _log.info("connected to Ray at %s", self._address)
            self.wake()

    def add(self, node: Node) -> None:
        """A node runs jobs from now on."""
        self._nodes[node.id] = node
        self._nodes_changed()
        _log.info("node %s runs jobs: %s", node.host, dict(node.slots))

    def remove(self, node: str, host: str, reason: str, *, refused: bool) -> None:
        """A node has gone, or must not run jobs."""
        self._nodes.pop(node, None)
        reason = f"node {host}: {reason[:_MAX_REASON]}"
        if refused:
            self._refused[node] = reason
        self._nodes_changed()
        _log.warning("no jobs run any longer on %s", reason)

    def lose(self, reason: str) -> str:
        """The cluster is gone, and all that runs there; returns the reason, shortened."""
        reason = reason[:_MAX_REASON]
        if self._connected or reason != self._problem:
            _log.warning("Ray at %s cannot be used: %s", self._address, reason)
        self._connected, self._problem = False, reason
        self._nodes.clear()
        self._refused.clear()
        self._nodes_changed()
        return reason

    def wake(self) -> None:
        """Have those who wait for a node or a slot look again."""

        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.ensure_future(notify())
        self._notifying.add(task)
        task.add_done_callback(self._notifying.discard)

    def _nodes_changed(self) -> None:
        for on_change in self._listeners:
            on_change()
        self.wake()

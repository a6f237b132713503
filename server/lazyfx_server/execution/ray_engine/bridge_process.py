"""The process between a server and Ray: Ray's driver. Ends with the server, and may end before it.

    python -m lazyfx_server.execution.ray_engine.bridge_process SOCKET ADDRESS OPENER

SOCKET is an inherited file descriptor. Standard input holds the settings of the nodes, then
stays open as long as the server lives.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from lazyfx_server.execution.ray_engine.bridge_frames import Frame, read_frame, write_frame
from lazyfx_server.execution.ray_engine.node_host import parse_facts
from lazyfx_server.execution.ray_engine.ray_cluster import (
    NodeFailed,
    NodeGone,
    NodeHandle,
    RayCluster,
)

_WATCH_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 10.0
"""How long the head node, and a node, may take to answer that it works."""
_PING_SECONDS: Final = 2.0
_OPEN_SECONDS: Final = 300.0
_RETRY_SECONDS: Final = (1.0, 60.0)
"""How long a node rests that has failed, at first and at most."""
LENGTH: Final = struct.Struct("!Q")


@dataclass
class _Node:
    """A node that is being opened or is open."""

    id: str
    host: str
    handle: NodeHandle | None = None
    jobs: set[asyncio.Task[None]] = field(default_factory=set)


class Bridge:
    """Passes jobs to nodes, and watches them.

    Args:
        cluster: The cluster.
        opener: What makes the executors of a node.
        config: The settings of the nodes.
        writer: Sends frames to the server.
    """

    def __init__(
        self, cluster: RayCluster, opener: str, config: bytes, writer: asyncio.StreamWriter
    ) -> None:
        self._cluster = cluster
        self._opener = opener
        self._config = config
        self._writer = writer
        self._nodes: dict[str, _Node] = {}
        self._resting: set[str] = set()
        self._rests: dict[str, float] = {}
        self._jobs: dict[int, _Node] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking = ThreadPoolExecutor(1)

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Work until the server or the head node is gone."""
        watching = asyncio.ensure_future(self._watch())
        serving = asyncio.ensure_future(self._serve(reader))
        await asyncio.wait({watching, serving}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            self._send("lost", reason=watching.result())
            await self._writer.drain()

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        while (frame := await read_frame(reader)) is not None:
            facts = frame.facts
            if frame.kind == "run":
                self._run(frame)
            elif frame.kind == "cancel":
                self._tell(facts["number"], "cancel", facts["number"])
            elif frame.kind == "answer":
                self._tell(
                    facts["number"], "answer", facts["number"], facts["call"], frame.body,
                    facts["refused"],
                )  # fmt: skip
            elif frame.kind == "ask":
                self._background(self._ask(facts["number"], facts["node"], frame.body))

    async def _watch(self) -> str:
        """Look for nodes until the head node is gone; returns why it seems so."""
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.run_in_executor(self._asking, self._cluster.nodes)
            try:
                alive = await asyncio.wait_for(asked, _ANSWER_SECONDS)
            except asyncio.TimeoutError:
                return f"the head node did not answer for {_ANSWER_SECONDS:g} s"
            except ConnectionError as error:
                return str(error)
            self._send("pulse")
            for node, (host, with_gpu) in alive.items():
                if node not in self._nodes and node not in self._resting:
                    self._nodes[node] = _Node(node, host)
                    self._background(self._keep(self._nodes[node], with_gpu))
            for gone in [node for node in self._nodes.values() if node.id not in alive]:
                self._down(gone, "it left the cluster")
            await asyncio.sleep(_WATCH_SECONDS)

    async def _keep(self, node: _Node, with_gpu: bool) -> None:
        """Open a node, and see that it answers until it does not."""
        try:
            node.handle = self._cluster.start(node.id, with_gpu, self._opener, self._config)
            text, description = await asyncio.wait_for(node.handle.call("open"), _OPEN_SECONDS)
            facts = parse_facts(text)
            if "slots" not in facts:
                refused = "refused" in facts
                self._down(node, str(facts.get("refused") or facts.get("failed")), refused=refused)
                return
            self._send("node_up", description, node=node.id, host=node.host, slots=facts["slots"])
            asyncio.get_running_loop().call_later(_RETRY_SECONDS[1], self._rests.pop, node.id, 0.0)
            while self._nodes.get(node.id) is node:
                await asyncio.wait_for(node.handle.call("ping"), _ANSWER_SECONDS)
                await asyncio.sleep(_PING_SECONDS)
        except (NodeGone, NodeFailed) as gone:
            self._down(node, str(gone))
        except asyncio.TimeoutError:
            self._down(node, "it did not answer in time")
        except (ValueError, KeyError, TypeError) as error:
            self._down(node, f"it sent something malformed ({type(error).__name__})")

    def _down(self, node: _Node, reason: str, *, refused: bool = False) -> None:
        if self._nodes.get(node.id) is not node:
            return
        del self._nodes[node.id]
        self._resting.add(node.id)
        if not refused:  # not at once: what ended it may still be so
            first, most = _RETRY_SECONDS
            rest = self._rests[node.id] = min(2 * self._rests.get(node.id, first / 2), most)
            asyncio.get_running_loop().call_later(rest, self._resting.discard, node.id)
        for job in list(node.jobs):
            job.cancel()
        if node.handle is not None:
            node.handle.kill()
        self._send("node_down", node=node.id, host=node.host, reason=reason, refused=refused)

    def _run(self, frame: Frame) -> None:
        number, node = frame.facts["number"], self._nodes.get(frame.facts["node"])
        if node is None or node.handle is None:
            lost = {"kind": "no_worker", "message": "the node has left"}
            self._send("ended", number=number, outcome=lost)
            return
        self._jobs[number] = node
        task = asyncio.ensure_future(self._run_on(node.handle, frame))
        node.jobs.add(task)
        task.add_done_callback(partial(self._ended, number, node))

    async def _run_on(self, handle: NodeHandle, frame: Frame) -> None:
        """Pass on the events of a job; `_down` cancels this.

        Raises:
            NodeGone: The node ended while it had the job.
            NodeFailed: There is a bug in lazyfx.
        """
        facts = frame.facts
        number = facts["number"]
        text, body = await handle.call(
            "begin", number, facts["pool"], frame.body, facts["timeout"], facts["owner"] or "",
            facts["may_call"],
        )  # fmt: skip
        while "call" in (event := parse_facts(text)):
            self._send("call", body, number=number, call=event["call"])
            text, body = await handle.call("follow", number)
        self._send("ended", body, number=number, outcome=event["outcome"])

    def _ended(self, number: int, node: _Node, task: asyncio.Task[None]) -> None:
        node.jobs.discard(task)
        self._jobs.pop(number, None)
        if task.cancelled():
            why = "it does not answer"
        elif (error := task.exception()) is None:
            return
        else:
            why = str(error)
            if not isinstance(error, NodeFailed):
                self._down(node, why)  # first, so that the job is not sent there again
        lost = {"kind": "crashed", "message": f"the node ended while it had the job: {why}"}
        self._send("ended", number=number, outcome=lost)

    def _tell(self, number: int, method: str, *arguments: Any) -> None:
        """Call a method of the node that has a job, if it still does."""
        node = self._jobs.get(number)
        if node is not None and node.handle is not None:
            self._background(_ignore_gone(node.handle.call(method, *arguments)))

    async def _ask(self, number: int, name: str, question: bytes) -> None:
        node = self._nodes.get(name)
        if node is None or node.handle is None:
            self._send("answered", number=number, error="the node has left")
            return
        try:
            answer = await asyncio.wait_for(node.handle.call("ask", question), _ANSWER_SECONDS)
        except (NodeGone, NodeFailed, asyncio.TimeoutError) as error:
            self._send("answered", number=number, error=str(error) or "no answer in time")
        else:
            self._send("answered", answer, number=number, error=None)

    def _send(self, kind: str, body: bytes = b"", **facts: Any) -> None:
        if not self._writer.is_closing():
            write_frame(self._writer, kind, body, **facts)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _ignore_gone(call: Coroutine[Any, Any, Any]) -> None:
    try:
        await call
    except (NodeGone, NodeFailed):
        return  # whoever waits for the job hears of it


async def _serve(
    connection: socket.socket, cluster: RayCluster, opener: str, config: bytes
) -> None:
    reader, writer = await asyncio.open_connection(sock=connection)
    await Bridge(cluster, opener, config, writer).serve(reader)
    writer.close()


def _end_with_server() -> None:
    """Wait until the server is gone, then end this process and all that it has started."""
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main(descriptor: str, address: str, opener: str) -> None:
    """Run the bridge; see the module."""
    connection = socket.socket(fileno=int(descriptor))
    (length,) = LENGTH.unpack(_read_exactly(LENGTH.size))
    config = _read_exactly(length)
    threading.Thread(target=_end_with_server, daemon=True).start()
    try:
        cluster = RayCluster(address)
    except ConnectionError as error:
        asyncio.run(_report(connection, str(error)))
        return
    asyncio.run(_serve(connection, cluster, opener, config))
    # Ray's own shutdown may hang when its head node is gone. What it has started ends with this.
    os._exit(0)


async def _report(connection: socket.socket, reason: str) -> None:
    _, writer = await asyncio.open_connection(sock=connection)
    write_frame(writer, "lost", reason=reason)
    await writer.drain()
    writer.close()


def _read_exactly(length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = os.read(0, length - len(data))
        if not part:
            sys.exit(1)
        data += part
    return data


if __name__ == "__main__":
    main(*sys.argv[1:])

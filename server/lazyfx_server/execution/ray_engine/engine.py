"""The server's side of a Ray cluster: the bridge process, and the jobs that it has."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from dataclasses import dataclass, field
from typing import Any, Final

from lazyfx_server.execution.executor import ExecutionError, JobBytes, NoWorker, parts_of
from lazyfx_server.execution.job_calls import CallRefused, OnCall
from lazyfx_server.execution.ray_engine.bridge_child import BridgeChild
from lazyfx_server.execution.ray_engine.bridge_frames import Frame, read_frame, write_frame
from lazyfx_server.execution.ray_engine.cluster_state import ClusterState, Node
from lazyfx_server.execution.ray_engine.outcomes import unpack_outcome

_log = logging.getLogger(__name__)

_CONNECT_SECONDS: Final = 90.0
"""How long the bridge may take until the head node has answered for the first time."""
_PULSE_SECONDS: Final = 20.0
"""How long it may be silent after that."""
_ASK_SECONDS: Final = 12.0
_RETRY_SECONDS: Final = (1.0, 30.0)


@dataclass
class _Job:
    """A job on a node."""

    ended: asyncio.Future[bytes]
    on_call: OnCall | None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class RayEngine:
    """A Ray cluster, reconnected whenever it is lost.

    Args:
        address: "local" to start one on this machine, or ray://HOST:PORT.
        opener: What makes the executors of a node, "module:function"; see `NodeHost`.
        config: The settings that it is called with.

    Attributes:
        cluster: What is known of it.
    """

    def __init__(self, address: str, opener: str, config: bytes) -> None:
        self.cluster = ClusterState(address)
        self._address = address
        self._opener = opener
        self._config = config
        self._numbers = itertools.count(1)
        self._jobs: dict[int, _Job] = {}
        self._questions: dict[int, asyncio.Future[bytes]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def start(self, seconds: float) -> bool:
        """Connect, and wait for the first node; returns whether there is one in time."""
        self._keeping = asyncio.ensure_future(self._keep())
        with contextlib.suppress(asyncio.TimeoutError):
            found = self.cluster.wait_until(lambda: bool(self.cluster.nodes))
            await asyncio.wait_for(found, seconds)
        return bool(self.cluster.nodes)

    async def run(
        self, node: Node, pool: str, job: JobBytes, timeout: float, owner: str | None,
        on_call: OnCall | None,
    ) -> bytes:  # fmt: skip
        """Run a job on a node, in a slot that the caller holds; stops it if cancelled.

        Raises:
            ExecutionError: As `Executor.run`.
        """
        if self._writer is None or not self.cluster.has(node):
            raise NoWorker("the node has left")
        number = next(self._numbers)
        ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        entry = self._jobs[number] = _Job(ended, on_call)
        self._send(
            "run", parts_of(job), number=number, node=node.id, pool=pool, timeout=timeout,
            owner=owner, may_call=on_call is not None,
        )  # fmt: skip
        try:
            return await ended
        except asyncio.CancelledError:
            self._send("cancel", number=number)
            raise
        finally:
            del self._jobs[number]
            for task in entry.tasks:
                task.cancel()

    async def ask(self, node: Node, question: bytes) -> bytes:
        """Ask a node something that is not a job.

        Raises:
            NoWorker: It does not answer.
        """
        number = next(self._numbers)
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._questions[number] = answered
        self._send("ask", question, number=number, node=node.id)
        try:
            return await asyncio.wait_for(answered, _ASK_SECONDS)
        except asyncio.TimeoutError as error:
            raise NoWorker("the node does not answer") from error
        finally:
            del self._questions[number]

    async def close(self) -> None:
        """Disconnect, which ends the processes on the nodes. May be called twice."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None

    async def _keep(self) -> None:
        """Keep a connection."""
        delay = _RETRY_SECONDS[0]
        while True:
            try:
                reason = await self._connection()
            except OSError as error:
                reason = f"the bridge to Ray cannot be started: {error}"
            except (ValueError, KeyError) as error:
                reason = f"the bridge to Ray sent a malformed frame: {error}"
            if self.cluster.connected:
                delay = _RETRY_SECONDS[0]
            self._lost(reason)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _RETRY_SECONDS[1])

    async def _connection(self) -> str:
        """One connection, from its start to its end; returns why it ended."""
        bridge = BridgeChild(self._address, self._opener)
        try:
            await asyncio.to_thread(bridge.hand_over, self._config)
            reader, self._writer = await asyncio.open_connection(sock=bridge.connection)
            return await self._read(reader)
        finally:
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.transport.abort()
            bridge.kill()
            # To the end even if cancelled: nothing of it may be left.
            await asyncio.shield(asyncio.to_thread(bridge.clean_up))

    async def _read(self, reader: asyncio.StreamReader) -> str:
        seconds = _CONNECT_SECONDS
        loop = asyncio.get_running_loop()
        last_pulse = loop.time()
        while True:
            left = last_pulse + seconds - loop.time()
            try:
                frame = await asyncio.wait_for(read_frame(reader), max(left, 0.0))
            except asyncio.TimeoutError:
                return f"the bridge to Ray did not answer for {seconds:g} s"
            if frame is None:
                return "the bridge to Ray ended, as Ray does when its head node is gone"
            if frame.kind == "lost":
                return str(frame.facts["reason"])
            if frame.kind == "pulse":
                last_pulse, seconds = loop.time(), _PULSE_SECONDS
                self.cluster.connect()
            else:
                self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        facts = frame.facts
        if frame.kind == "node_up":
            node = Node(facts["node"], facts["host"], facts["slots"], frame.body)
            self.cluster.add(node)
        elif frame.kind == "node_down":
            reason, refused = str(facts["reason"]), bool(facts["refused"])
            self.cluster.remove(facts["node"], facts["host"], reason, refused=refused)
        elif frame.kind == "call":
            self._call(facts["number"], facts["call"], frame.body)
        elif frame.kind == "ended":
            job = self._jobs.get(facts["number"])
            if job is not None and not job.ended.done():
                _settle(job.ended, frame.body, facts["outcome"])
        elif frame.kind == "answered":
            question = self._questions.get(facts["number"])
            if question is not None and not question.done():
                error = facts["error"]
                outcome = None if error is None else {"kind": "no_worker", "message": error}
                _settle(question, frame.body, outcome)

    def _call(self, number: int, call: int, question: bytes) -> None:
        job = self._jobs.get(number)
        if job is None or job.on_call is None:
            return  # it has ended; the node refuses the calls of jobs that may not call
        on_call = job.on_call

        async def answer() -> None:
            refused, body = None, b""
            try:
                body = await on_call(question)
            except CallRefused as refusal:
                refused = str(refusal)
            except Exception:  # noqa: BLE001 - whatever it is, the job must hear of it
                _log.exception("cannot answer a call of a job")
                refused = "the server could not answer this call"
            self._send("answer", body, number=number, call=call, refused=refused)

        task = asyncio.ensure_future(answer())
        job.tasks.add(task)
        task.add_done_callback(job.tasks.discard)

    def _lost(self, reason: str) -> None:
        """The cluster is gone, and all that runs there."""
        reason = self.cluster.lose(reason)
        error: ExecutionError = NoWorker(f"the connection to Ray is lost: {reason}")
        for waiting in (*(job.ended for job in self._jobs.values()), *self._questions.values()):
            if not waiting.done():
                waiting.set_exception(error)

    def _send(self, kind: str, body: Any = b"", **facts: Any) -> None:
        if self._writer is not None and not self._writer.is_closing():
            write_frame(self._writer, kind, body, **facts)


def _settle(waiting: asyncio.Future[bytes], body: bytes, outcome: dict[str, Any] | None) -> None:
    if outcome is None:
        waiting.set_result(body)
    else:
        waiting.set_exception(unpack_outcome(outcome))

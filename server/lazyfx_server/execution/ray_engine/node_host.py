"""The actor that represents lazyfx on a node of a Ray cluster: it holds executors, and runs jobs.

Ray calls its methods with bytes, text and numbers, and gets the same back. It needs no Ray itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lazyfx_server.execution.executor import ExecutionError, Executor
from lazyfx_server.execution.job_calls import CallRefused
from lazyfx_server.execution.ray_engine.outcomes import pack_outcome

Event = tuple[str, bytes]
"""What happens to a job: facts in JSON, and bytes."""


class NodeRefused(Exception):  # noqa: N818 - reads as what happened
    """This node must not run jobs of this server; the message says why."""


class NodePools(Protocol):
    """The executors of a node.

    Attributes:
        pools: Executors by name.
    """

    pools: Mapping[str, Executor]

    async def start(self) -> bytes:
        """Starts them; returns a description of the node.

        Raises:
            NodeRefused: They must not be used.
            ExecutionError: They cannot be started.
        """

    async def ask(self, question: bytes) -> bytes:
        """Answers a question that is not a job."""

    async def close(self) -> None:
        """Stops them."""


@dataclass
class _Running:
    """A job that runs here."""

    task: asyncio.Task[bytes]
    calls: asyncio.Queue[tuple[int, bytes]]
    answers: dict[int, asyncio.Future[bytes]] = field(default_factory=dict)


class NodeHost:
    """Runs the jobs of one server on one node.

    Args:
        opener: What makes the executors, "module:function"; called with `config`, and returns
            `NodePools`.
        config: The server's settings for them.
    """

    def __init__(self, opener: str, config: bytes) -> None:
        self._opener = opener
        self._config = config
        self._pools: NodePools | None = None
        self._running: dict[int, _Running] = {}
        self._call_numbers = itertools.count(1)

    async def open(self) -> tuple[str, bytes]:
        """Start the executors.

        Returns:
            The number of slots by pool, in JSON, and the description of the node; or the reason
            for which this node refuses.
        """
        module, _, name = self._opener.partition(":")
        try:
            make: Callable[[bytes], NodePools] = getattr(importlib.import_module(module), name)
            self._pools = make(self._config)
            description = await self._pools.start()
        except NodeRefused as refusal:
            return json.dumps({"refused": str(refusal)}), b""
        except (ExecutionError, OSError) as error:
            return json.dumps({"failed": str(error)}), b""
        slots = {pool: executor.workers for pool, executor in self._pools.pools.items()}
        return json.dumps({"slots": slots}), description

    async def begin(
        self, number: int, pool: str, job: bytes, timeout: float, owner: str, may_call: bool
    ) -> Event:
        """Begin a job; returns its first event, a call or its end."""
        assert self._pools is not None, "begun after open"
        calls: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        answers: dict[int, asyncio.Future[bytes]] = {}

        async def on_call(question: bytes) -> bytes:
            call = next(self._call_numbers)
            answers[call] = asyncio.get_running_loop().create_future()
            calls.put_nowait((call, question))
            try:
                return await answers[call]
            finally:
                del answers[call]

        running = self._pools.pools[pool].run(
            job, timeout=timeout, owner=owner or None, on_call=on_call if may_call else None
        )
        self._running[number] = _Running(asyncio.ensure_future(running), calls, answers)
        return await self.follow(number)

    async def follow(self, number: int) -> Event:
        """The next event of a job."""
        job = self._running[number]
        getting = asyncio.ensure_future(job.calls.get())
        await asyncio.wait({job.task, getting}, return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            call, question = getting.result()
            return json.dumps({"call": call}), question
        getting.cancel()
        del self._running[number]
        try:
            return json.dumps({"outcome": None}), job.task.result()
        except ExecutionError as error:
            return json.dumps({"outcome": pack_outcome(error)}), b""
        except asyncio.CancelledError:
            gone = {"kind": "crashed", "message": "the job was cancelled"}
            return json.dumps({"outcome": gone}), b""

    async def answer(self, number: int, call: int, answer: bytes, refused: str | None) -> None:
        """Answer a call of a job, or refuse it."""
        job = self._running.get(number)
        waiting = None if job is None else job.answers.get(call)
        if waiting is None or waiting.done():
            return  # the job has ended
        if refused is None:
            waiting.set_result(answer)
        else:
            waiting.set_exception(CallRefused(refused))

    async def cancel(self, number: int) -> None:
        """Stop a job, and its worker."""
        if (job := self._running.get(number)) is not None:
            job.task.cancel()

    async def ask(self, question: bytes) -> bytes:
        """See `NodePools.ask`."""
        assert self._pools is not None, "asked after open"
        return await self._pools.ask(question)

    async def ping(self) -> bool:
        """Whether this node works."""
        return True

    async def close(self) -> None:
        """Stop the executors."""
        if self._pools is not None:
            with contextlib.suppress(ExecutionError, OSError):
                await self._pools.close()


def parse_facts(text: str) -> dict[str, Any]:
    """The facts of an event."""
    facts = json.loads(text)
    assert isinstance(facts, dict), "written by NodeHost"
    return facts

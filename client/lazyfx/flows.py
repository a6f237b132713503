"""Flows: what a client does, as generators without I/O.

A flow yields a step wherever something has to be waited for, and takes what came of it. Two drivers
do the steps: `calls.async_driver` in an event loop, over grpc.aio, and `calls.blocking_driver` in
the thread of the caller, over a channel that blocks. So each conversation is written once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

Result = TypeVar("Result")
Lock: TypeAlias = "asyncio.Lock | threading.Lock"


class Call(Protocol):
    """A call under way."""

    def cancel(self) -> object:
        """End it, if it has not ended, and let go of what belongs to it."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start a call that has one answer; the reply is the `Call`.

    Attributes:
        method: Name of the service's method.
        request: Bytes of the message.
        seconds: That it may take.
    """

    method: str
    request: bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class Finish:
    """Wait for the answer to a call that `Start` has started; the reply is its bytes, if any."""

    call: Call


@dataclass(frozen=True, slots=True)
class Open:
    """Start a call that has a stream of answers; the reply is the `Call`, to be cancelled.

    Attributes:
        method: Name of the service's method.
        requests: Bytes of the message; for a method that takes a stream, of each.
        seconds: That it may take.
    """

    method: str
    requests: bytes | Iterator[bytes]
    seconds: float


@dataclass(frozen=True, slots=True)
class Next:
    """Wait for the next answer of a stream; the reply is its bytes, or None at the end."""

    call: Call


@dataclass(frozen=True, slots=True)
class Send:
    """Send a stream of messages; the reply is the bytes of the one answer, if any.

    Attributes:
        method: Name of the service's method.
        requests: Bytes of each; taken while they are sent, by the blocking driver in a thread of
            gRPC's.
        seconds: That the call may take.
    """

    method: str
    requests: Iterator[bytes]
    seconds: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for so many seconds, or until the client is closed.

    After a pause of no seconds, calls that were started are on their way.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Offload:
    """Run work that takes its time in a thread of its own; the reply is what it returns.

    The modes of the caller's thread (grad, autocast ...) are not in force there.
    """

    work: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Locked:
    """Run a flow while nobody else holds a lock of the driver's kind; the reply is its result."""

    lock: Lock
    flow: Flow[Any]


Step: TypeAlias = "Start | Finish | Open | Next | Send | Pause | Offload | Locked"
Flow: TypeAlias = Generator[Step, Any, Result]

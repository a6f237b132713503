"""Flows: the client's operations as generators without I/O.

A flow yields a step wherever it must wait, and receives the step's result. Two drivers perform the
steps: `calls.async_driver` in an event loop, over grpc.aio, and `calls.blocking_driver` in the
caller's thread, over a blocking channel. Each operation is thus written once for both clients.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, TypeVar

Result = TypeVar("Result")
Lock: TypeAlias = "asyncio.Lock | threading.Lock"


class Call(Protocol):
    """A call in progress."""

    def cancel(self) -> object:
        """Cancel the call unless it has ended, and release its resources."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call goes.

    Attributes:
        replica: Index of the address.
        key: Selects the server if the address is a name for several; "" if it is not.
    """

    replica: int = 0
    key: str = ""


ONLY_PLACE: Final = Place()


@dataclass(frozen=True, slots=True)
class Start:
    """Start a call with one response; the result is the `Call`.

    Attributes:
        method: Name of the service's method.
        request: The serialized message.
        seconds: Timeout.
        place: The replica to which it goes.
        is_raced: It is waited for with `First`.
    """

    method: str
    request: bytes
    seconds: float
    place: Place = ONLY_PLACE
    is_raced: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """Wait for the response of a call that `Start` started; the result is its bytes, if any.

    Attributes:
        call: The call.
        place: Where it went.
    """

    call: Call
    place: Place = ONLY_PLACE


@dataclass(frozen=True, slots=True)
class First:
    """Wait for one of several calls that `Start` started; the result is its index.

    None if no call has ended after these seconds. `Finish` then gives the response of the call.
    """

    calls: Sequence[Call]
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Open:
    """Start a call with a stream of responses; the result is the `Call`, which must be cancelled.

    Attributes:
        method: Name of the service's method.
        requests: The serialized message, or each message of a stream.
        seconds: Timeout.
        place: The replica to which it goes.
    """

    method: str
    requests: bytes | Iterator[bytes]
    seconds: float
    place: Place = ONLY_PLACE


@dataclass(frozen=True, slots=True)
class Next:
    """Wait for the next response of a stream; the result is its bytes, or None at the end.

    Attributes:
        call: The call.
        place: Where it went.
    """

    call: Call
    place: Place = ONLY_PLACE


@dataclass(frozen=True, slots=True)
class Send:
    """Send a stream of messages; the result is the bytes of the only response, if any.

    Attributes:
        method: Name of the service's method.
        requests: The serialized messages, produced while they are sent; with the blocking driver,
            in a gRPC thread.
        seconds: Timeout.
        place: The replica to which it goes.
    """

    method: str
    requests: Iterator[bytes]
    seconds: float
    place: Place = ONLY_PLACE


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for some seconds, or until the client is closed.

    A pause of 0 seconds lets started calls be sent.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Offload:
    """Run slow work in another thread; the result is its return value.

    The caller's thread-local modes (grad, autocast ...) are not active there.
    """

    work: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class AwaitConnection:
    """Wait until the connection is established or has failed; the result is whether either was.

    Attributes:
        seconds: How long to wait.
        place: The replica.
        must_answer: Wait for the answer to a health check, or until that fails.
    """

    seconds: float
    place: Place = ONLY_PLACE
    must_answer: bool = False


@dataclass(frozen=True, slots=True)
class Locked:
    """Run a flow under a lock of the driver's kind; the result is the flow's."""

    lock: Lock
    flow: Flow[Any]


Step: TypeAlias = (
    "Start | Finish | First | Open | Next | Send | Pause | Offload | AwaitConnection | Locked"
)
Flow: TypeAlias = Generator[Step, Any, Result]

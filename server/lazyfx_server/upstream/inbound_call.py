"""Where the call that is being served came from: what a server needs to forward it.

Read by the interceptor of a server that has an upstream, once for each call; inherited by the tasks
that serve the call, and by the flight that the call starts.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from lazyfx_server.compiling.forwarding.answers import VIA_FIELD
from lazyfx_server.errors import FailedPreconditionError

VIA: Final = "lazyfx-via"
"""The header with the ids of the servers that a request has come through, joined by commas."""

_AUTHORIZATION: Final = "authorization"
_MAX_HOPS: Final = 4
_IDS: Final = re.compile(r"[0-9a-f]{16}(?:,[0-9a-f]{16}){0,15}")


@dataclass(frozen=True, slots=True)
class Route:
    """What is known of a call.

    Attributes:
        authorization: The caller's authorization header; empty without one.
        via: Ids of the servers that it came through.
        deadline: When its caller stops waiting, by `time.monotonic`; None if it does not.
    """

    authorization: str = ""
    via: tuple[str, ...] = ()
    deadline: float | None = None

    def seconds_left(self) -> float | None:
        """Seconds until the deadline, at least 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


_ROUTE: ContextVar[Route] = ContextVar("lazyfx_route")


class Routes:
    """Reads the routes of calls, and refuses those that have come through this server before.

    Attributes:
        own_id: What this server adds to the header.
    """

    def __init__(self) -> None:
        self.own_id = secrets.token_hex(8)

    def enter(
        self, metadata: Iterable[tuple[str, str | bytes]], seconds_left: float | None
    ) -> None:
        """Begin to serve a call.

        Args:
            metadata: Its metadata.
            seconds_left: Seconds until its deadline; None without one.

        Raises:
            FailedPreconditionError: It has come through this server before, or through too many.
        """
        authorization, via = "", ""
        for name, value in metadata:
            if isinstance(value, str):
                if name == _AUTHORIZATION:
                    authorization = value
                elif name == VIA:
                    via = value
        ids: tuple[str, ...] = ()
        if via:
            ids = tuple(via.split(",")) if _IDS.fullmatch(via) else ("",) * (_MAX_HOPS + 1)
            if self.own_id in ids:
                raise FailedPreconditionError.of_field(
                    VIA_FIELD,
                    "the request has come through this server before: the --upstream of one of "
                    "the servers on its way leads back here; let each point towards the center",
                )
            if len(ids) > _MAX_HOPS:
                # Another field: a caller can write this header, and must not end the use of this
                # server for everybody, as a ring does.
                raise FailedPreconditionError.of_field(
                    f"{VIA_FIELD}[{_MAX_HOPS}]",
                    f"the request came through more than {_MAX_HOPS} servers; let their "
                    "--upstream name a server nearer to the center",
                )
        deadline = None if seconds_left is None else time.monotonic() + seconds_left
        _ROUTE.set(Route(authorization, ids, deadline))


def current_route() -> Route:
    """The route of the call that is being served."""
    return _ROUTE.get(Route())

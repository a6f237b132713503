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
from lazyfx_server.errors import FailedPreconditionError, InvalidRequestError

VIA: Final = "lazyfx-via"
"""The header with the ids of the servers that a request has come through, joined by commas."""

_AUTHORIZATION: Final = "authorization"
_MAX_HOPS: Final = 4
_MAX_IDS: Final = 16
_IDS: Final = re.compile(rf"[0-9a-f]{{16}}(?:,[0-9a-f]{{16}}){{0,{_MAX_IDS - 1}}}")
# Not `VIA_FIELD`, which says that there is a ring and ends the use of the upstream for all callers:
# any caller can write this header.
_VIA_OF_A_CALLER: Final = f"{VIA_FIELD}[{_MAX_HOPS}]"


@dataclass(frozen=True, slots=True)
class InboundCall:
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


_INBOUND: ContextVar[InboundCall] = ContextVar("lazyfx_inbound_call")


class InboundCalls:
    """Reads where calls came from, and refuses those that have come through this server before.

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
            InvalidRequestError: The header with the ids of servers is malformed.
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
            if not _IDS.fullmatch(via):
                raise InvalidRequestError.of_field(
                    _VIA_OF_A_CALLER,
                    "must be ids of servers, joined by commas: 16 hexadecimal digits each, and at "
                    f"most {_MAX_IDS}; only servers set this header, so do not send it",
                )
            ids = tuple(via.split(","))
            if self.own_id in ids:
                raise FailedPreconditionError.of_field(
                    VIA_FIELD,
                    "the request has come through this server before: the --upstream of one of "
                    "the servers on its path leads back here; let each point towards the center",
                )
            if len(ids) > _MAX_HOPS:
                raise FailedPreconditionError.of_field(
                    _VIA_OF_A_CALLER,
                    f"the request came through more than {_MAX_HOPS} servers; let their "
                    "--upstream name a server nearer to the center",
                )
        deadline = None if seconds_left is None else time.monotonic() + seconds_left
        _INBOUND.set(InboundCall(authorization, ids, deadline))


def inbound_call() -> InboundCall:
    """The call that is being served."""
    return _INBOUND.get(InboundCall())

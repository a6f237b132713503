"""Where a call goes on if a server does not answer: another replica, a pause, or a clear error."""

from __future__ import annotations

from functools import partial
from typing import Final

import grpc

from lazyfx.calls.diagnosing import (
    diagnose_each,
    in_one_sentence,
    is_through_a_proxy,
    not_a_server,
)
from lazyfx.calls.replicas import Replicas, Route
from lazyfx.calls.retries import ExpectedReturn, RetryBudget
from lazyfx.calls.watching import SilentServerError
from lazyfx.errors import ServiceError, TimedOutError, UnavailableError
from lazyfx.flows import AwaitConnection, Flow, Offload, Pause
from lazyfx.shared import grpc_status
from lazyfx.shared.printable import printable
from lazyfx.trust.access import Tls

# What gRPC itself says of a server that dies or stops while it answers. Every call is safe to
# repeat: compiles are keyed by content, uploads by digest.
_BROKEN: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
# A first connection takes a few round trips. After this time, another connection is tried.
_SILENT_SECONDS: Final = 0.8


class Failover:
    """Where calls go on when a server does not answer.

    Args:
        replicas: Where calls go.
        tls: How the connections are encrypted.
    """

    def __init__(self, replicas: Replicas, tls: Tls | None) -> None:
        self._replicas = replicas
        self._address = ",".join(replicas.addresses)
        self._tls = tls
        self._return = ExpectedReturn()
        # Replicas that have answered a connection attempt, and those that have stopped answering
        # while they were connected.
        self._known: set[int] = set()
        self._silent: set[int] = set()

    def refuse_silence(self, route: Route) -> Flow[None]:
        """Before the first call to a server that does not answer a connection attempt.

        gRPC would wait for the end of the attempt, see `channel`. Another replica is chosen.

        Raises:
            UnavailableError: There is no other server; says why this one does not answer.
        """
        while route.place.replica not in self._known:
            replica = route.place.replica
            was_silent = replica in self._silent
            is_reached = yield AwaitConnection(_SILENT_SECONDS, route.place, was_silent)
            if not is_reached and not is_through_a_proxy():
                if route.move():
                    continue
                if self._replicas.are_several:
                    return  # the call itself finds out
                reasons = yield Offload(partial(diagnose_each, self._replicas.addresses, self._tls))
                if reasons[0] is not None:
                    raise UnavailableError(reasons[0], code="UNAVAILABLE")
            self._known.add(replica)
            self._silent.discard(replica)

    def find_another(
        self, error: UnavailableError, retry_budget: RetryBudget, route: Route
    ) -> Flow[None]:
        """Choose where a call goes next after a replica failed, or wait for one.

        Raises:
            UnavailableError: No replica answers.
        """
        if self._replicas.are_several:  # before it is used again, it must show that it answers
            self._known.discard(route.place.replica)
        if isinstance(error.__cause__, SilentServerError):
            self._silent.add(route.place.replica)
        if retry_budget.left() and route.move():
            yield from self.refuse_silence(route)
            return
        # A starting or stopping server sends a retry delay; between the two, nothing listens.
        self._return.note(error)
        if error.retry_after is not None or self._return.is_expected:
            yield from retry_budget.wait(error, is_expected=True)
            route.start_over()
        elif (pause := route.next_round()) is not None and pause < retry_budget.left():
            yield Pause(pause)
        else:
            yield from self._diagnose(error, retry_budget, route)

    def _diagnose(
        self, error: UnavailableError, retry_budget: RetryBudget, route: Route
    ) -> Flow[None]:
        """Find out why no call reaches a server; return if one can be reached again.

        Raises:
            UnavailableError: None can; says why, if that can be found.
        """
        cause = error.__cause__
        addresses = self._replicas.addresses
        if not self._replicas.are_several:
            details = (cause.details() or "") if isinstance(cause, grpc.RpcError) else ""
            is_explained = not_a_server(self._address, printable(details)) is not None
            if is_explained or grpc_status.is_from_server(cause) or error.code != "UNAVAILABLE":
                raise error
        reasons = yield Offload(partial(diagnose_each, addresses, self._tls))
        if None in reasons and (pause := route.extra_round()) and pause < retry_budget.left():
            # It has just come back, and gRPC will notice when it next connects.
            yield Pause(pause)
            return
        reason = in_one_sentence(addresses, reasons)
        if reason is None:
            reason = (
                f"the connection to {self._address} broke or was not established in time, but the "
                f"server can be reached now; try again (details: {error.reason})"
            )
        raise UnavailableError(reason, code=error.code) from error

    def errors(self, route: Route) -> _Converted:
        """Converts gRPC's errors within the block into this package's errors."""
        return _Converted(self, route)

    def service_error(self, error: grpc.RpcError, address: str) -> ServiceError:
        """The server's error; for gRPC's own errors, with a message that says what to do."""
        code, details = error.code(), error.details() or ""
        if grpc_status.is_from_server(error):
            return grpc_status.to_error(error)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            message = (
                f"the server at {address} did not answer within the timeout of the call; "
                "allow more with timeout= (--timeout, LAZYFX_TIMEOUT)"
            )
            return TimedOutError(message, code=code.name)
        if other := not_a_server(address, printable(details)):
            return UnavailableError(other, code=code.name)
        if code in _BROKEN and self._replicas.are_several:
            return UnavailableError(printable(details), code=code.name)
        return grpc_status.to_error(error)


class _Converted:
    """The block in which errors are converted. A class, not a generator: every hit enters one."""

    __slots__ = ("_failover", "_route")

    def __init__(self, failover: Failover, route: Route) -> None:
        self._failover = failover
        self._route = route

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, grpc.RpcError):
            raise self._failover.service_error(error, self._route.address) from error

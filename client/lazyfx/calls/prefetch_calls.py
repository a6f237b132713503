"""The calls by which a client gets artifacts before it asks for them."""

from __future__ import annotations

from lazyfx.calls.replicas import Route
from lazyfx.calls.retries import RetryBudget
from lazyfx.calls.service_calls import ServiceCalls, parsed
from lazyfx.flows import Call, Finish, Flow, Next, Open, Start
from lazyfx.v1 import compiler_pb2 as pb


def open_prefetch(
    calls: ServiceCalls, request: pb.PrefetchRequest, route: Route, seconds: float
) -> Flow[Call]:
    """Start a stream of what a job asked for before; it is not tried elsewhere if it breaks.

    Raises:
        UnavailableError: No server can be reached.
    """
    yield from calls.failover.refuse_silence(route)
    call: Call = yield Open("Prefetch", request.SerializeToString(), seconds, route.place)
    return call


def next_prefetched(
    calls: ServiceCalls, call: Call, route: Route
) -> Flow[pb.PrefetchResponse | None]:
    """The next part of it; None at its end.

    Raises:
        ServiceError: The stream failed; an earlier server does not know the method.
        ProtocolError: The part is malformed.
    """
    with calls.failover.errors(route):
        data = yield Next(call, route.place)
    return None if data is None else parsed(pb.PrefetchResponse, data)


def remember_job(calls: ServiceCalls, request: pb.RememberJobRequest, seconds: float) -> Flow[None]:
    """Have a server remember what a job asked for, in one try.

    Raises:
        ServiceError: It did not.
    """
    route = calls.replicas.route(request.jobs[0])
    budget = RetryBudget(seconds)
    yield from calls.failover.refuse_silence(route)
    with calls.failover.errors(route):
        data = request.SerializeToString()
        call = yield Start("RememberJob", data, budget.left(), route.place)
        yield Finish(call, route.place)

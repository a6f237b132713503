"""Flights of several servers in this process, over a real Redis."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import pytest
import store_servers
from remote_stores import key, opened, until, url

from lazyfx_server.compiling.flights.fleet_flights import FleetFlights, FleetSettings
from lazyfx_server.compiling.flights.leased_flight import Work
from lazyfx_server.compiling.flights.single_flight import Flight, SingleFlight
from lazyfx_server.compiling.limits.cost_estimates import JobKind
from lazyfx_server.store import SharedStore, TieredStore, open_store
from lazyfx_server.telemetry import Event, FleetFlightEnded

PLACE = key("the result")
Make = Callable[[Flight[bytes]], Awaitable[bytes]]


class Recorder:
    """Keeps how flights have ended."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def observe(self, event: Event) -> None:
        assert isinstance(event, FleetFlightEnded)
        self.outcomes.append(event.outcome)


@dataclass
class Replica:
    """As much of a server as flights need."""

    store: TieredStore
    shared: SharedStore
    fleet: FleetFlights
    recorder: Recorder
    flights: SingleFlight[bytes]
    begun: int = 0

    async def ask(
        self, make: Make, place: str = PLACE, size: int = 0, parts: Sequence[str] = ()
    ) -> bytes:
        """The result, made by `make` from a graph of some bytes if no server has made it."""

        async def find_or_make(flight: Flight[bytes]) -> bytes:
            if (found := await self.store.get(place)) is not None:
                return found
            job = JobKind(place.encode(), b"a pipeline", size)
            work = Work(place, "compile", job, lambda: self.store.get(place), 0.1)
            async with self.fleet.flight(work, flight) as ours:
                if ours.found is None:
                    self.begun += 1
                    flight.mark_running()
                    made = await make(flight)
                    flight.mark_finishing()
                    await self.store.put(place, made)
                    ours.parts = parts
                    return made
            assert ours.found is not None
            return ours.found

        return (await self.flights.join(place.encode(), find_or_make)).result()


@pytest.fixture
def redis_server() -> Iterator[store_servers.Server]:
    server = store_servers.redis()
    yield server
    server.kill()


Start = Callable[..., Awaitable[Replica]]


async def opened_replica(
    stack: AsyncExitStack, where: str, patience: float = 600.0, publish: float = 5.0
) -> Replica:
    shared = (await stack.enter_async_context(opened(where))).store
    store = open_store(None, memory_bytes=1 << 20, disk_bytes=0, shared=shared)
    assert isinstance(store, TieredStore)
    recorder = Recorder()
    fleet = FleetFlights(shared.leases, store, recorder, FleetSettings(patience, publish))
    stack.push_async_callback(fleet.drain)
    return Replica(store, shared, fleet, recorder, SingleFlight(lambda _: None))


@pytest.fixture
async def replica(redis_server: store_servers.Server) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:
        yield partial(opened_replica, stack, url(redis_server))


def makes(value: bytes, seconds: float = 0.0) -> Make:
    async def make(_: Flight[bytes]) -> bytes:
        await asyncio.sleep(seconds)
        return value

    return make


async def hangs(_: Flight[bytes]) -> bytes:
    await asyncio.sleep(3600)
    raise AssertionError


async def fails(_: Flight[bytes]) -> bytes:
    await asyncio.sleep(0.2)
    raise ValueError("this server cannot")


def outcomes(servers: Sequence[Replica]) -> list[str]:
    return sorted(outcome for server in servers for outcome in server.recorder.outcomes)


async def begun(server: Replica) -> None:
    await until(lambda: server.begun == 1)


async def test_one_server_makes_what_many_ask_for(replica: Start) -> None:
    servers = [await replica() for _ in range(3)]
    asked = [servers[n % 3].ask(makes(b"value", 0.05)) for n in range(30)]
    assert {*await asyncio.gather(*asked)} == {b"value"}
    assert sum(server.begun for server in servers) == 1
    assert outcomes(servers) == ["joined", "joined", "led"]
    # The lease has ended: another result is made at once.
    await asyncio.gather(*(server.fleet.drain() for server in servers))
    await servers[0].store.delete(PLACE)
    assert await servers[0].ask(makes(b"again")) == b"again"


async def test_servers_on_s3_alone_make_it_once(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    s3 = store_servers.moto()
    request.addfinalizer(s3.kill)
    for name, value in store_servers.s3_variables(s3).items():
        monkeypatch.setenv(name, value)
    async with AsyncExitStack() as stack:
        servers = [await opened_replica(stack, "s3://shared/flights") for _ in range(3)]
        first = asyncio.ensure_future(servers[0].ask(makes(b"value", 1.0)))
        await begun(servers[0])
        others = [servers[n % 3].ask(makes(b"value")) for n in range(6)]
        assert {*await asyncio.gather(first, *others)} == {b"value"}
        assert [server.begun for server in servers] == [1, 0, 0]
        assert outcomes(servers) == ["joined", "joined", "led"]
        # The holder of this one leaves; the bucket itself would keep the lease.
        left = asyncio.ensure_future(servers[0].ask(hangs, key("another")))
        await until(lambda: servers[0].begun == 2)
        left.cancel()
        assert await servers[1].ask(makes(b"value"), key("another")) == b"value"


async def test_result_is_found_elsewhere_when_it_is_answered(replica: Start) -> None:
    one, two = await replica(), await replica()
    for number in range(20):
        await one.store.delete(PLACE)
        value = b"%d" % number
        assert await one.ask(makes(value)) == value
        assert await two.store.get(PLACE) == value
        await two.store.delete(PLACE)


async def test_publishing_waits_for_no_other_entry_and_not_for_a_frozen_store(
    replica: Start, redis_server: store_servers.Server
) -> None:
    one, stuck = await replica(publish=0.1), key("written while the store is frozen")
    redis_server.signal(signal.SIGSTOP)
    await one.store.put(stuck, b"value")
    written = asyncio.ensure_future(one.store.flush([stuck]))
    for places in ([PLACE], [stuck]):
        published = asyncio.ensure_future(one.fleet.publish(places, 5))
        await asyncio.wait({published, written}, return_when=asyncio.FIRST_COMPLETED)
        assert published.done()
        assert not written.done()
    redis_server.signal(signal.SIGCONT)
    await written


async def test_lease_ends_when_all_parts_of_the_result_are_written(
    replica: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await replica(publish=0.1), await replica()
    gates = {key(name): asyncio.Event() for name in ("a part", "of another request")}
    put = one.shared.put

    async def put_late(place: str, value: bytes) -> None:
        if place in gates:
            await gates[place].wait()
        await put(place, value)

    monkeypatch.setattr(one.shared, "put", put_late)
    for place in gates:
        await one.store.put(place, b"value")
    assert await one.ask(makes(b"value"), parts=[key("a part")]) == b"value"
    ended = asyncio.ensure_future(one.fleet.drain())
    assert await two.store.get(PLACE) == b"value"
    assert not ended.done()
    assert two.shared.leases is not None
    assert await two.shared.leases.holder(PLACE) is not None
    gates[key("a part")].set()
    await ended
    gates[key("of another request")].set()


async def test_failure_is_the_askers_own_and_another_server_tries(replica: Start) -> None:
    one, two = await replica(), await replica()
    failing = asyncio.ensure_future(one.ask(fails))
    await begun(one)
    assert await two.ask(makes(b"value")) == b"value"
    with pytest.raises(ValueError, match="this server cannot"):
        await failing


async def test_last_waiter_that_leaves_ends_the_lease(replica: Start) -> None:
    one, two = await replica(), await replica()
    asked = [asyncio.ensure_future(one.ask(hangs)) for _ in range(2)]
    await begun(one)
    waits = asyncio.ensure_future(two.ask(makes(b"value")))
    asked[0].cancel()
    await asyncio.sleep(0.5)
    assert not waits.done()
    assert two.begun == 0
    asked[1].cancel()
    assert await waits == b"value"
    assert two.recorder.outcomes == ["taken_over"]


async def test_one_of_those_who_wait_hedges_and_the_first_result_counts(replica: Start) -> None:
    servers = [await replica(1.5) for _ in range(4)]
    slow = asyncio.ensure_future(servers[0].ask(hangs))
    await begun(servers[0])
    others = [server.ask(makes(b"value", 0.2)) for server in servers[1:]]
    assert await asyncio.gather(*others) == [b"value"] * 3
    assert await slow == b"value"
    assert servers[0].recorder.outcomes == ["outrun"]
    assert outcomes(servers[1:]) == ["hedged", "joined", "joined"]


async def test_large_graphs_have_more_time_after_many_small_ones(replica: Start) -> None:
    one, two = await replica(0.3), await replica(0.3)
    for number in range(5):
        await two.ask(makes(b"small", 0.05), key(f"small {number}"), size=1_000)
    large, size = key("large"), 1_000_000
    slow = asyncio.ensure_future(one.ask(makes(b"large", 2.0), large, size))
    await begun(one)
    assert await two.ask(hangs, large, size) == b"large"
    assert await slow == b"large"
    assert two.recorder.outcomes[-1] == "joined"


async def test_finishing_flight_is_not_outrun(replica: Start) -> None:
    one, two = await replica(), await replica()

    async def finishes_late(flight: Flight[bytes]) -> bytes:
        flight.mark_finishing()
        await two.store.put(PLACE, b"of another")
        await two.store.flush([PLACE])
        await asyncio.sleep(3)  # longer than it takes to look whether another one was first
        return b"own"

    assert await one.ask(finishes_late) == b"own"
    assert one.recorder.outcomes == ["led"]


async def test_without_answers_about_leases_each_server_works_alone(
    replica: Start, redis_server: store_servers.Server
) -> None:
    servers = [await replica() for _ in range(3)]
    first = asyncio.ensure_future(servers[0].ask(makes(b"value", 1.0)))
    await begun(servers[0])
    asked = [asyncio.ensure_future(server.ask(makes(b"value"))) for server in servers]
    await asyncio.sleep(0.3)
    redis_server.kill()
    assert await asyncio.gather(first, *asked) == [b"value"] * 4
    assert [server.begun for server in servers] == [1, 1, 1]

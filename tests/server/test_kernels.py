"""Compiled kernels in the store: one compile for each, none that was tampered with."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lazyfx_server.compiling.flights.fleet_flights import FleetFlights, FleetSettings
from lazyfx_server.compiling.kernels.build_slots import BuildSlots
from lazyfx_server.compiling.kernels.kernel_flights import Compile, KernelFlights
from lazyfx_server.compiling.kernels.kernel_store import KernelStore
from lazyfx_server.store import DiskStore, MemoryStore, Store, VerifiedStore
from lazyfx_server.telemetry import KernelProvided, Observers
from lazyfx_server.v1 import worker_pb2 as worker

SECRET = bytes(range(32))
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
RECORD = worker.KernelRecord(output=b"\x7fELF" + bytes(500), seconds=2.0)


class Seen:
    """An observer."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def observe(self, event: Any) -> None:
        self.events.append(event)

    def kernels(self) -> list[KernelProvided]:
        return [event for event in self.events if isinstance(event, KernelProvided)]


def flights_over(store: Store, seen: Seen, secret: bytes = SECRET) -> KernelFlights:
    alone = FleetFlights(None, None, Observers(), FleetSettings())
    return KernelFlights(KernelStore(store, secret, lambda: None), alone, seen)


class Compiles:
    """Compiles that are counted, and end when they are let."""

    def __init__(self, failed: str = "") -> None:
        self.runs = 0
        self.ended = 0
        self.may_end = asyncio.Event()
        self._failed = failed

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Compile]:
        yield self._compile

    async def may_keep(self, result: worker.BuildResult) -> bool:
        return not result.failed

    async def _compile(self) -> worker.BuildResult:
        self.runs += 1
        try:
            await self.may_end.wait()
        finally:
            self.ended += 1
        return worker.BuildResult(output=b"" if self._failed else b"made", failed=self._failed)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_jobs_that_need_one_kernel_at_once_compile_it_once() -> None:
    async def scenario() -> None:
        seen, compiles = Seen(), Compiles()
        flights = flights_over(MemoryStore(1 << 20), seen)
        waiting = [
            asyncio.ensure_future(flights.provide(KEY, b"", compiles.turn, compiles.may_keep))
            for _ in range(3)
        ]
        await settle()
        compiles.may_end.set()
        made = await asyncio.gather(*waiting)
        assert compiles.runs == 1
        assert {each.result.output for each in made} == {b"made"}
        assert sorted(each.source for each in made) == ["compiled", "joined", "joined"]
        again = await flights.provide(KEY, b"", compiles.turn, compiles.may_keep)
        assert (again.source, again.result.output, compiles.runs) == ("found", b"made", 1)
        assert again.seconds == made[0].seconds
        counted = seen.kernels()
        assert sum(each.spent_seconds > 0 for each in counted) == 1
        assert sum(each.saved_seconds > 0 for each in counted) == 3

    asyncio.run(scenario())


def test_a_compile_ends_with_the_last_job_that_waits_for_it() -> None:
    async def scenario() -> None:
        compiles = Compiles()
        flights = flights_over(MemoryStore(1 << 20), Seen())
        first, second = (
            asyncio.ensure_future(flights.provide(KEY, b"", compiles.turn, compiles.may_keep))
            for _ in range(2)
        )
        await settle()
        first.cancel()
        await asyncio.sleep(0.1)
        assert (compiles.runs, compiles.ended) == (1, 0)
        second.cancel()
        await asyncio.sleep(0.1)
        assert compiles.ended == 1
        compiles.may_end.set()
        assert (
            await flights.provide(KEY, b"", compiles.turn, compiles.may_keep)
        ).source == "compiled"

    asyncio.run(scenario())


def test_a_compile_that_failed_is_tried_again() -> None:
    async def scenario() -> None:
        flights = flights_over(MemoryStore(1 << 20), Seen())
        for failed in ("no such type", ""):
            compiles = Compiles(failed)
            compiles.may_end.set()
            provided = await flights.provide(KEY, b"", compiles.turn, compiles.may_keep)
            assert provided.result.failed == failed
            assert (provided.source, compiles.runs) == ("failed" if failed else "compiled", 1)

    asyncio.run(scenario())


def test_a_tenant_s_kernels_are_its_own_if_it_shares_none() -> None:
    async def scenario() -> None:
        compiles = Compiles()
        compiles.may_end.set()
        flights = flights_over(MemoryStore(1 << 20), Seen())
        for scope in (b"", b"one", b"two"):
            assert (
                await flights.provide(KEY, scope, compiles.turn, compiles.may_keep)
            ).source == "compiled"
        assert (
            await flights.provide(KEY, b"one", compiles.turn, compiles.may_keep)
        ).source == "found"

    asyncio.run(scenario())


def test_of_a_thousand_entries_that_were_tampered_with_none_is_used() -> None:
    async def scenario() -> None:
        forged: list[None] = []
        store = MemoryStore(1 << 24)
        kernels = KernelStore(store, SECRET, lambda: forged.append(None))
        here, there, own = (
            kernels.place(KEY, b""), kernels.place(OTHER_KEY, b""), kernels.place(KEY, b"tenant"),
        )  # fmt: skip
        await kernels.add(here, RECORD)
        assert await kernels.find(here) == RECORD
        good = await store.get(here.key)
        assert good is not None
        foreign = KernelStore(store, bytes(32), lambda: None).place(KEY, b"")
        sealed = [
            foreign.seal.close(here.key, RECORD.SerializeToString()),  # by somebody without it
            RECORD.SerializeToString(),
            b"",
        ]
        generator = random.Random(0)
        entries = [(here, data) for data in sealed]
        entries += [(there, good), (own, good)]  # sealed for another key, and for all tenants
        while len(entries) < 1000:
            data = bytearray(good)
            where = generator.randrange(len(data))
            match generator.randrange(3):
                case 0:
                    data[where] ^= 1 << generator.randrange(8)
                case 1:
                    del data[where:]
                case _:
                    data[where:where] = generator.randbytes(1 + generator.randrange(40))
            entries.append((here, bytes(data)))
        for place, data in entries:
            await store.put(place.key, data)
            assert await kernels.find(place) is None
            assert await store.get(place.key) is None
        assert len(forged) == len(entries) == 1000

    asyncio.run(scenario())


def test_damaged_files_of_kernels_are_compiled_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        corrupt: list[str] = []
        store = VerifiedStore(
            DiskStore(tmp_path, 1 << 20), on_corrupt=lambda _tier, key: corrupt.append(key)
        )
        compiles = Compiles()
        compiles.may_end.set()
        flights = flights_over(store, Seen())
        damages = (lambda data: data[:-1], lambda data: data[:9], lambda data: data[:-1] + b"?")
        for number, damage in enumerate(damages, 1):
            assert (
                await flights.provide(KEY, b"", compiles.turn, compiles.may_keep)
            ).result.output == b"made"
            assert compiles.runs == number
            assert (
                await flights.provide(KEY, b"", compiles.turn, compiles.may_keep)
            ).source == "found"
            (file,) = _files(tmp_path / "kernels")
            file.write_bytes(damage(file.read_bytes()))
        assert (
            await flights.provide(KEY, b"", compiles.turn, compiles.may_keep)
        ).source == "compiled"
        assert len(corrupt) == len(damages)
        await store.close()

    asyncio.run(scenario())


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_jobs_take_turns_at_the_compilers() -> None:
    async def scenario() -> list[str]:
        slots, order = BuildSlots(1), []

        async def build(job: str) -> None:
            async with slots.slot(job):
                order.append(job)
                await asyncio.sleep(0)

        jobs = [asyncio.ensure_future(build(job)) for job in "aaaabbc"]
        await asyncio.sleep(0)
        jobs[2].cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        async with slots.slot("a"):  # none was lost
            order.append("a")
        return order

    # The first one found a free compiler; of the third, nobody waits any more.
    assert "".join(asyncio.run(scenario())) == "aabcaba"


def test_whoever_holds_the_lease_of_a_kernel_has_a_compiler() -> None:
    order: list[str] = []

    class Fleet(FleetFlights):
        def flight(self, *arguments: Any) -> Any:
            order.append("lease")
            return super().flight(*arguments)

    class Turns(Compiles):
        @asynccontextmanager
        async def turn(self) -> AsyncIterator[Compile]:
            order.append("compiler")
            yield self._compile

    async def scenario() -> None:
        fleet = Fleet(None, None, Observers(), FleetSettings())
        flights = KernelFlights(KernelStore(MemoryStore(1 << 20), SECRET, print), fleet, Seen())
        compiles = Turns()
        compiles.may_end.set()
        await flights.provide(KEY, b"", compiles.turn, compiles.may_keep)

    asyncio.run(scenario())
    assert order == ["compiler", "lease"]

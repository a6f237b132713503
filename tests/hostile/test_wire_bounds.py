"""Requests are checked against bounds on their bytes before they are parsed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from bench.abuses import OVER_A_BOUND, inside
from lazyfx.errors import DecodeError
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.limits.held_bytes import UNCOUNTED_BYTES, RequestMemory
from lazyfx_server.compiling.tenants import Tenants
from lazyfx_server.errors import InvalidRequestError, OverloadedError
from lazyfx_server.passes import PassError, Registry
from lazyfx_server.rpc.message_bounds import request_bounds
from lazyfx_server.rpc.request_decoding import Decoder, request_id
from lazyfx_server.security import scanning
from lazyfx_server.security.checked_graph import check
from lazyfx_server.security.scanning import FieldBounds, MessageBounds, OverBoundError, scan
from lazyfx_server.settings.limits import CallLimits, GraphLimits, RequestLimits, UploadLimits
from lazyfx_server.settings.part import Bound

BOUNDS = request_bounds(RequestLimits(), CallLimits(), UploadLimits())
MB = 2**20


def held() -> RequestMemory:
    return RequestMemory(CallLimits())


async def decoded(method: str, data: bytes) -> Any:
    async with Decoder(BOUNDS, held()).reading(
        method, data, Tenants(bytes(32)).named("")
    ) as message:
        return message


@pytest.mark.parametrize("name", OVER_A_BOUND)
async def test_an_abuse_costs_no_more_steps_than_its_bound(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    abuse = OVER_A_BOUND[name]
    (message,) = abuse.make()
    parsed: list[int] = []
    monkeypatch.setattr(
        "lazyfx_server.rpc.request_decoding._incoming", lambda *_args: parsed.append(1) or None
    )
    with pytest.raises(InvalidRequestError) as caught:
        await decoded(abuse.method, message)
    assert not parsed
    fields = [violation.field for violation in caught.value.violations]
    assert fields == [abuse.field or "request"]
    assert len(str(caught.value)) < 500


def test_a_scan_ends_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads no further than the entry that is one too many."""

    class Read(bytes):
        furthest = 0

        def __getitem__(self, place: Any) -> Any:
            Read.furthest = max(Read.furthest, place)
            return super().__getitem__(place)

    bounds = MessageBounds({1: FieldBounds("items", count=Bound(100, "max_items"))})
    with pytest.raises(OverBoundError, match="max_items"):
        scan(Read(b"\x0a\x00" * MB), bounds)
    assert Read.furthest <= 2 * 101


@pytest.mark.parametrize("seed", range(20))
def test_lists_are_skipped_as_they_would_be_read(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short entries that follow one another are skipped in a loop of their own: to the same end."""
    numbers = random.Random(seed)
    names = Bound(numbers.choice([3, 50]), "max_nodes")
    text = FieldBounds("texts", Bound(numbers.choice([2, 200])), names, total=names)
    inner = MessageBounds({1: text, 2: FieldBounds("more", count=Bound(40)), 3: FieldBounds("one")})
    bounds = MessageBounds({1: FieldBounds("parts", count=Bound(9), inside=inner)})

    def message() -> bytes:
        entries = b""
        for _ in range(numbers.randrange(6)):
            field, content = (
                numbers.choice([1, 1, 2, 3]),
                bytes(numbers.choice([0, 1, 3, 127, 130])),
            )
            entries += inside(field, content) * numbers.choice([1, 2, 30])
        whole = inside(1, entries) * numbers.randrange(1, 4)
        return whole[: len(whole) - numbers.choice([0, 0, 0, 1, 2])]

    def outcome(data: bytes) -> str:
        try:
            return repr(scan(data, bounds))
        except OverBoundError as error:
            return str(error)

    messages = [message() for _ in range(200)]
    quick = [outcome(data) for data in messages]
    monkeypatch.setattr(
        "lazyfx_server.security.scanning._Scanner._run",
        lambda _self, position, _end, _begin, _rule, count: (position, count),
    )
    assert [outcome(data) for data in messages] == quick
    assert len(set(quick)) > 5


def test_depth_is_bounded() -> None:
    data = b""
    for _ in range(scanning.MAX_DEPTH + 2):
        data = inside(4, data)
    spec = MessageBounds()
    spec.fields = {4: FieldBounds("passes", inside=spec)}
    with pytest.raises(OverBoundError, match="deep"):
        scan(data + b"", spec)


def unbounded(
    message: Descriptor, bounds: MessageBounds, path: str, seen: set[int]
) -> Iterator[str]:
    """Fields of a message that the table forgets."""
    if id(bounds) in seen:
        return
    seen.add(id(bounds))
    for field in message.fields:
        found = bounds.fields.get(field.number)
        where = f"{path}.{field.name}"
        if found is None or found.name != field.name:
            yield where
            continue
        if field.is_repeated and found.count.most == 1:
            yield f"{where}: is repeated"
        if not field.is_repeated and found.count.most != 1:
            yield f"{where}: is not repeated"
        texts = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
        if field.type in texts and found.size.most == 2**31:
            yield f"{where}: has no bound"
        if field.message_type is not None:
            if found.inside is None:
                yield f"{where}: nothing inside is bounded"
            else:
                yield from unbounded(field.message_type, found.inside, where, seen)


@pytest.mark.parametrize("method", pb.DESCRIPTOR.services_by_name["GraphCompiler"].methods_by_name)
def test_every_field_of_every_request_has_a_bound(method: str) -> None:
    message = pb.DESCRIPTOR.services_by_name["GraphCompiler"].methods_by_name[method].input_type
    assert list(unbounded(message, BOUNDS[method], method, set())) == []


async def test_what_is_within_the_bounds_comes_through_whole() -> None:
    body = bytes(range(256)) * 300
    request = pb.CompileRequest(
        graph_digest=graph_pb2.Digest(sha256=bytes(32), size_bytes=7),
        graph=graph_pb2.Graph(
            format_version=1,
            body=body,
            presentation=graph_pb2.Presentation(graphs=[graph_pb2.GraphNames(stems=["é", ""])]),
        ),
        passes=[pb.PassSpec(name="p", options=[pb.PassOption(name="o")])],
        values=[pb.ValueBinding(graph=1, attribute=2)],
        verify=True,
    )
    for method, data in (
        ("Compile", request.SerializeToString()),
        (
            "CompileBatch",
            pb.CompileBatchRequest(request_id=2**63, request=request).SerializeToString(),
        ),
    ):
        incoming = await decoded(method, data)
        assert bytes(incoming.body) == body
        assert incoming.size == len(data)
        again = pb.CompileRequest()
        again.CopyFrom(incoming.request)
        assert again.graph.body == b""
        again.graph.body = body
        assert again == request
    assert request_id(pb.CompileBatchRequest(request_id=2**63).SerializeToString()) == 2**63
    assert request_id(b"\xff") == 0
    # Fields of a newer release are passed over.
    newer = request.SerializeToString() + inside(900, b"x")
    assert bytes((await decoded("Compile", newer)).body) == body


def test_what_is_held_is_bounded_and_given_back() -> None:
    held = RequestMemory(CallLimits(max_held_bytes=10 * MB, max_held_bytes_per_tenant=6 * MB))
    with held.hold("a", 5 * MB) as one:
        with pytest.raises(OverloadedError, match="max_held_bytes_per_tenant") as caught:
            held.hold("a", 2 * MB).__enter__()
        assert caught.value.retry_after
        with held.hold("b", 5 * MB), pytest.raises(OverloadedError, match="max_held_bytes"):
            held.hold("c", MB).__enter__()
        # Small requests get in, whoever fills the memory; and what is held twice counts once.
        with held.hold("a", UNCOUNTED_BYTES), one:
            assert held.bytes == 5 * MB
        assert held.bytes == 5 * MB
    assert held.bytes == 0
    with held.hold("a", 20 * MB):  # alone
        assert held.bytes == 20 * MB


def test_a_long_name_is_compared_with_nothing() -> None:
    with pytest.raises(PassError) as caught:
        Registry().create("dead_code_eliminatio" + "n" * 100_000)
    assert "did you mean" not in str(caught.value)
    with pytest.raises(PassError, match="did you mean"):
        Registry().create("dead_code_eliminatio")


ROWS = {
    "strings": b"\x0a\x00", "targets": b"\x12\x00", "devices": b"\x1a\x00", "symbols": b"\x22\x00",
    "expressions": b"\x2a\x00", "tensors": b"\x32\x00", "values": b"\x3a\x00", "calls": b"\x42\x00",
    "graphs": b"\x4a\x00",
}  # fmt: skip


@pytest.mark.parametrize("table", ROWS)
def test_tables_of_a_body_are_counted_before_it_is_parsed(table: str) -> None:
    with pytest.raises(DecodeError) as caught:
        check(ROWS[table] * 500_000, limits=GraphLimits(max_nodes=1000))
    assert caught.value.field == table
    assert "entries" in str(caught.value)


def test_graphs_in_one_another_are_bounded() -> None:
    hole = graph_pb2.Argument(operand=graph_pb2.Empty())
    body = graph_pb2.GraphBody()
    body.calls.add(opcode=graph_pb2.OPCODE_PLACEHOLDER)
    body.calls.add(opcode=graph_pb2.OPCODE_CALL_MODULE, args=[hole])
    body.calls.add(opcode=graph_pb2.OPCODE_OUTPUT, args=[hole])
    for i in range(10_000):
        body.graphs.add(calls=[0, 1, 2], operands=[0, 1, 1]).attributes.add(graph=i + 1)
    body.graphs.add(calls=[0, 2], operands=[1])
    with pytest.raises(DecodeError, match="max_nesting"):
        check(body.SerializeToString(deterministic=True))


async def test_large_requests_leave_the_loop_free() -> None:
    """While 20 large requests are refused, the loop goes round."""
    turns = 0

    async def turning() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(turning())
    data = inside(2, inside(4, inside(1, b"\x0a\x00" * (8 * MB - 100))))
    with pytest.raises(InvalidRequestError):
        await decoded("Compile", data)
    task.cancel()
    assert turns > 3

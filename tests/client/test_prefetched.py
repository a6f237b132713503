"""What a server sends before it is asked for: assembled, bounded, waited for, and told of."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable

import pytest
from torch.fx import symbolic_trace

from lazyfx.artifacts.prefetched import PrefetchedArtifact, PrefetchStream, UnverifiedArtifact
from lazyfx.backend.sessions import Session
from lazyfx.backend.warm_start import job_record, receiving
from lazyfx.backend.warm_start.job_record import JobRecord
from lazyfx.backend.warm_start.receiving import Receiving
from lazyfx.blocking_client import Client
from lazyfx.capture import remembering
from lazyfx.errors import ArtifactError, LazyfxError, ProtocolError, UnavailableError
from lazyfx.shared.answers.answer_bounds import DEFAULT_BOUNDS
from lazyfx.shared.native.prefetch_keys import (
    MAX_ARTIFACTS,
    MAX_COMPILE_BYTES,
    prefetch_key,
    remembered_compile,
)
from lazyfx.v1 import compiler_pb2 as pb

KEY, OTHER = bytes(32), bytes([1]) * 32


def plan(*keys: bytes) -> pb.PrefetchResponse:
    return pb.PrefetchResponse(plan=pb.PrefetchPlan(keys=keys))


def module(
    key: bytes = KEY, module_key: bytes = bytes(32), explanation: str = ""
) -> pb.PrefetchResponse:
    cache = pb.CacheResult(status=pb.CACHE_STATUS_HIT, explanation=explanation)
    answer = pb.CompileResponse(module_key=module_key, cache=cache)
    return pb.PrefetchResponse(module=pb.PrefetchedModule(key=key, compiled=answer))


def parts(data: bytes, digest: bytes | None = None) -> list[pb.PrefetchResponse]:
    header = pb.ArtifactHeader(kind=pb.ARTIFACT_KIND_INDUCTOR, size_bytes=len(data))
    sha256 = hashlib.sha256(data).digest() if digest is None else digest
    made = (
        pb.GetArtifactResponse(header=header),
        pb.GetArtifactResponse(chunk=pb.ArtifactChunk(data=data)),
        pb.GetArtifactResponse(trailer=pb.ArtifactTrailer(digest={"sha256": sha256})),
    )
    return [pb.PrefetchResponse(artifact=part) for part in made]


def taken(messages: list[pb.PrefetchResponse], max_bytes: int = 100) -> list[UnverifiedArtifact]:
    stream = PrefetchStream(DEFAULT_BOUNDS, max_bytes)
    made = [stream.take(message) for message in messages]
    return [each for each in made if isinstance(each, UnverifiedArtifact)]


def test_artifacts_are_assembled_in_the_order_in_which_they_come() -> None:
    sent = [plan(KEY, OTHER), module(), *parts(b"one"), module(OTHER), *parts(b"two")]
    first, second = taken(sent)
    assert (first.key, first.cache, first.data) == (KEY, "hit", b"one")
    assert (second.key, second.data) == (OTHER, b"two")
    assert first.request.module_key == bytes(32)
    assert first.request.kind == pb.ARTIFACT_KIND_INDUCTOR


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ([module()], "does not belong"),
        ([plan(), plan()], "does not belong"),
        ([plan(KEY), *parts(b"one")], "does not belong"),
        ([plan(KEY), module(), module()], "does not belong"),
        ([plan(KEY), module(OTHER)], "announced"),
        ([plan(KEY), module(), *parts(b"one"), module()], "announced"),
        ([plan(b"short")], "32 bytes"),
        ([plan(*[KEY] * (MAX_ARTIFACTS + 1))], "at most"),
        ([plan(KEY), module(module_key=b"short")], "32 bytes"),
        ([plan(KEY), module(explanation="x" * 4096), *parts(b"one")], "at most 4096"),
        ([plan(KEY), module(), *parts(b"one", b"other")], "does not match"),
        ([plan(KEY), module(), *parts(bytes(101))], "at most 100"),
        ([plan(KEY, OTHER), module(), *parts(bytes(60)), module(OTHER), *parts(bytes(60))], "40"),
        ([pb.PrefetchResponse()], "does not belong"),
    ],
)
def test_a_part_out_of_order_malformed_or_too_much_ends_the_stream(
    sent: list[pb.PrefetchResponse], message: str
) -> None:
    with pytest.raises((ProtocolError, ArtifactError), match=message):
        taken(sent)


def artifact(key: bytes) -> PrefetchedArtifact:
    return PrefetchedArtifact(key, "hit", b"data", None)  # type: ignore[arg-type]


def received(*steps: Callable[[Receiving], object]) -> Receiving:
    def read(receiver: Receiving) -> None:
        for step in steps:
            step(receiver)

    made = Receiving(read)
    made.start()
    return made


def planned(*keys: bytes) -> Callable[[Receiving], object]:
    return lambda receiver: receiver.planned(pb.PrefetchPlan(keys=keys))


def arrived(key: bytes) -> Callable[[Receiving], object]:
    return lambda receiver: receiver.arrived(artifact(key))


def test_each_artifact_is_handed_out_once() -> None:
    made = received(planned(KEY, OTHER), arrived(KEY))
    assert made.take(KEY) is not None
    assert made.take(KEY) is None
    assert made.take(OTHER) is None, "the stream has ended without it"
    assert made.take(b"another") is None
    assert made.take_server() is not None
    assert made.take_server() is None, "later it may be another server"


def test_one_that_was_announced_is_waited_for_while_parts_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(receiving, "_PART_SECONDS", 60.0)
    go_on, asked = threading.Event(), threading.Event()
    steps = (lambda _: go_on.wait(60), lambda receiver: receiver.progressed(), arrived(KEY))
    made = received(planned(KEY), *steps, lambda _: asked.wait(60), arrived(OTHER))
    threading.Timer(0.05, go_on.set).start()
    assert made.take(b"not announced") is None
    assert made.take(KEY) is not None, "it is handed out as it arrives, while the stream goes on"
    asked.set()


@pytest.mark.parametrize("steps", [(), (planned(KEY, OTHER),)])
def test_a_server_that_goes_silent_is_waited_for_once(
    steps: tuple[Callable[[Receiving], object], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "_PART_SECONDS", 0.01)
    monkeypatch.setattr(receiving, "_PLAN_SECONDS", 0.01)
    silence = threading.Event()
    made = received(*steps, lambda _: silence.wait(60), arrived(KEY))
    while steps and made.take_server() is None:
        time.sleep(0.001)
    assert made.take(KEY) is None
    assert not made.wants_more, "it will be asked for, and need not arrive twice"
    monkeypatch.setattr(made, "_is_moving", lambda: pytest.fail("it waits again"))
    assert made.take(OTHER) is None
    silence.set()


def test_whatever_goes_wrong_in_the_thread_ends_the_waiting() -> None:
    def fail(_: Receiving) -> None:
        raise UnavailableError("no such method", code="UNIMPLEMENTED")

    assert received(fail).take(KEY) is None
    assert received(planned(KEY), fail).take(KEY) is None


def test_what_nobody_asks_for_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "_KEEP_SECONDS", 0.0)
    made = received(planned(KEY), arrived(KEY))
    made._thread.join(10)
    assert not made._arrived
    stopped = Receiving(lambda receiver: receiver.arrived(artifact(KEY)))
    stopped.stop()
    stopped.start()
    stopped._thread.join(10)
    assert not stopped._arrived
    assert not stopped.wants_more


def test_a_key_covers_what_is_compiled_and_under_which_conditions_but_not_the_machine() -> None:
    asked = pb.CompileRequest(graph_digest={"sha256": KEY, "size_bytes": 7}, priority=1)
    native = pb.NativeRequest(configuration=b"c", target=pb.NativeTarget(torch="2.13"))
    key = prefetch_key(remembered_compile(asked), native)
    changes: list[Callable[[pb.CompileRequest, pb.NativeRequest], object]] = [
        lambda a, _: setattr(a.graph_digest, "sha256", OTHER),
        lambda a, _: a.passes.add(name="dead_code_elimination"),
        lambda a, _: setattr(a, "verify", True),
        lambda a, _: setattr(a, "eager", True),
        lambda _, n: setattr(n, "configuration", b"d"),
        lambda _, n: n.states.add(name="grad", value=pb.OptionValue(boolean=True)),
        lambda _, n: n.settings.add(name="cpp.simdlen", value=pb.OptionValue(integer=1)),
    ]
    keys = {key}
    for change in changes:
        other, conditions = pb.CompileRequest(), pb.NativeRequest()
        other.CopyFrom(asked)
        conditions.CopyFrom(native)
        change(other, conditions)
        keys.add(prefetch_key(remembered_compile(other), conditions))
    assert len(keys) == 1 + len(changes)
    asked.priority = pb.PRIORITY_PREWARM
    native.target.torch = "2.14"
    assert prefetch_key(remembered_compile(asked), native) == key


def test_what_a_compile_would_ask_for_follows_changes_of_the_graph() -> None:
    graph = symbolic_trace(lambda x: x.sin() + 1)
    with Client("127.0.0.1:1") as client:
        before = client.asked_of(graph, ())
        node = next(node for node in graph.graph.nodes if node.op == "call_method")
        node.target = "cos"
        graph.recompile()
        after = client.asked_of(graph, ())
    assert before is not None
    assert after is not None
    assert after.graph_digest.sha256 == remembering.encode(graph).digest
    assert after.graph_digest != before.graph_digest


def test_what_a_server_said_of_itself_is_dropped_with_the_first_error() -> None:
    session = Session("127.0.0.1:1")
    session.warm_start._receiving = received(planned())
    session.warm_start._receiving._thread.join(10)
    session.record_outcome(UnavailableError("gone", code="UNAVAILABLE"))
    assert session.warm_start.take_server() is None, "another may answer next time"
    session.client.close()


class Server:
    """What it was told."""

    def __init__(self) -> None:
        self.told: list[pb.RememberJobRequest] = []
        self.is_silent = False

    def remember(self, request: pb.RememberJobRequest, _: float) -> None:
        if self.is_silent:
            raise LazyfxError("silent")
        self.told.append(request)


def asked_for(number: int, passes: int = 0) -> tuple[bytes, pb.CompileRequest, pb.NativeRequest]:
    digest = number.to_bytes(32, "big")
    asked = pb.CompileRequest(graph_digest={"sha256": digest})
    for _ in range(passes):
        asked.passes.add(name="x" * 200)
    native = pb.NativeRequest(configuration=bytes([number % 2]))
    return prefetch_key(asked, native), asked, native


@pytest.fixture
def server() -> Server:
    return Server()


def test_a_server_is_told_only_of_what_it_did_not_send_by_itself(server: Server) -> None:
    record = JobRecord([KEY], server.remember)
    for number in range(3):
        record.add(*asked_for(number), is_new=False)
    record.close(1.0)
    assert not server.told
    record = JobRecord([KEY], server.remember)
    for number in range(4):
        record.add(*asked_for(number), is_new=number == 2)
        record.add(*asked_for(number), is_new=True)  # again
    record.close(1.0)
    last = server.told[-1]
    assert [a.compile.graph_digest.sha256[-1] for a in last.artifacts] == [0, 1, 2, 3]
    assert [a.native for a in last.artifacts] == [0, 1, 0, 1]
    assert (len(last.natives), list(last.jobs)) == (2, [KEY])


def test_it_is_told_soon_and_a_silent_one_does_no_harm(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_record, "_PAUSE_SECONDS", 0.001)
    server.is_silent = True
    record = JobRecord([KEY], server.remember)
    record.add(*asked_for(1), is_new=True)
    thread = record._thread
    if thread is not None:
        thread.join(10)
    server.is_silent = False
    record.add(*asked_for(2), is_new=True)
    end = time.monotonic() + 10
    while not server.told and time.monotonic() < end:
        time.sleep(0.001)
    assert [len(told.artifacts) for told in server.told] == [2]
    record.close(1.0)
    assert len(server.told) == 1


@pytest.mark.parametrize("is_planned", [True, False])
@pytest.mark.parametrize("has_failed", [True, False])
@pytest.mark.parametrize("at_exit", [True, False])
def test_only_the_end_of_a_job_drops_what_it_has_not_asked_for(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    *,
    at_exit: bool,
    has_failed: bool,
    is_planned: bool,
) -> None:
    monkeypatch.setattr(job_record, "_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(sys, "last_value", ValueError() if has_failed else None, raising=False)
    session = Session("127.0.0.1:1")
    warm_start, record = session.warm_start, JobRecord([KEY], server.remember)
    asked, unasked = asked_for(1), asked_for(2)
    keys = (asked[0], unasked[0]) if is_planned else (asked[0],)
    warm_start._receiving, warm_start._record = received(planned(*keys)), record
    warm_start._receiving._thread.join(10)
    record.add(*asked, is_new=True)
    if record._thread is not None:
        record._thread.join(10)
    assert [told.has_ended for told in server.told] == [False]
    warm_start.close(at_exit=at_exit)
    has_ended = at_exit and not has_failed and is_planned
    assert [told.has_ended for told in server.told[1:]] == ([True] if has_ended else [])
    session.client.close()


def test_what_is_told_is_bounded(server: Server) -> None:
    record = JobRecord([KEY], server.remember)
    record.add(*asked_for(0, passes=MAX_COMPILE_BYTES // 200 + 1), is_new=True)
    for number in range(1, MAX_ARTIFACTS + 10):
        record.add(*asked_for(number), is_new=True)
    record.close(1.0)
    last = server.told[-1]
    assert len(last.artifacts) == MAX_ARTIFACTS
    assert last.artifacts[0].compile.graph_digest.sha256[-1] == 1

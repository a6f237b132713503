"""An upstream that lies: nothing of it is used, and the work is done here."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hostile.hostile_server import HostileServer, hostile_server, miss
from server.harness import graph_of, metrics, total
from servers import RunningServer

import lazyfx
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2


@pytest.fixture(scope="module")
def liar() -> Iterator[HostileServer]:
    with hostile_server() as found:
        yield found


@pytest.fixture(scope="module")
def tier(launch_for_file: Callable[..., RunningServer], liar: HostileServer) -> RunningServer:
    return launch_for_file("--workers", "1", "--upstream", liar.address)


def told(statement: pb.ArtifactStatement) -> pb.ArtifactStatement:
    """What an honest upstream of these versions signs."""
    statement.lazyfx_version, statement.torch_version = version("lazyfx"), torch.__version__
    statement.python_version = platform.python_version()
    return statement


def but(**changes: Any) -> Callable[[pb.ArtifactStatement], pb.ArtifactStatement]:
    def change(statement: pb.ArtifactStatement) -> pb.ArtifactStatement:
        statement = told(statement)
        for name, value in changes.items():
            setattr(statement, name, value)
        return statement

    return change


def expired(statement: pb.ArtifactStatement) -> pb.ArtifactStatement:
    statement.expires.FromSeconds(1)
    return told(statement)


def response(**changes: Any) -> Callable[[pb.CompileResponse], pb.CompileResponse]:
    def change(answer: pb.CompileResponse) -> pb.CompileResponse:
        answer.MergeFrom(pb.CompileResponse(**changes))
        return answer

    return change


def body(
    change: Callable[[graph_pb2.GraphBody], object],
) -> Callable[[graph_pb2.CompiledGraph], graph_pb2.CompiledGraph]:
    """A graph whose body is changed, and which is canonical again as far as bytes go."""

    def changed(compiled: graph_pb2.CompiledGraph) -> graph_pb2.CompiledGraph:
        message = graph_pb2.GraphBody.FromString(compiled.graph.body)
        change(message)
        compiled.graph.body = message.SerializeToString(deterministic=True)
        return compiled

    return changed


def reaches_out(message: graph_pb2.GraphBody) -> None:
    message.targets[0].name = "os.system"


def grows(message: graph_pb2.GraphBody) -> None:
    message.graphs[0].calls[1:1] = [1] * 300_000


def other_names(compiled: graph_pb2.CompiledGraph) -> graph_pb2.CompiledGraph:
    compiled.graph.presentation.graphs.add()
    return compiled


def no_origins(compiled: graph_pb2.CompiledGraph) -> graph_pb2.CompiledGraph:
    del compiled.provenance[:]
    return compiled


def signed_by_another(signature: pb.ArtifactSignature) -> pb.ArtifactSignature:
    signature.signature = Ed25519PrivateKey.generate().sign(signature.statement)
    return signature


def of_an_unknown_key(signature: pb.ArtifactSignature) -> pb.ArtifactSignature:
    signature.key_id = b"\0" * 8
    return signature


def many_parts(parts: Iterator[Any]) -> Iterator[Any]:
    yield next(parts)
    while True:
        yield pb.GetArtifactResponse(chunk=pb.ArtifactChunk())


def reversed_parts(parts: Iterator[Any]) -> Iterator[Any]:
    yield from reversed(list(parts))


def asks_for(subject: str) -> Callable[[pb.CompileRequest, Any], None]:
    return lambda request, context: miss(context, subject)


def asks_again(request: pb.CompileRequest, context: Any) -> None:
    miss(context, f"blobs/{request.graph_digest.sha256.hex()}")


digest = graph_pb2.Digest(sha256=hashlib.sha256(b"").digest(), size_bytes=2**40)
half_a_gibibyte = graph_pb2.Digest(sha256=hashlib.sha256(b"").digest(), size_bytes=2**29)
LIES: dict[str, dict[str, Any]] = {
    "another key signed": {"signature": signed_by_another},
    "an unknown key": {"signature": of_an_unknown_key},
    "no signature": {"signature": lambda signature: pb.ArtifactSignature()},
    "signed for another module": {"statement": but(module_key=b"\1" * 32)},
    "signed as another kind": {"statement": but(kind=pb.ARTIFACT_KIND_CODE)},
    "signed for other passes": {"statement": but(pipeline="remove_dropout")},
    "an old signature": {"statement": expired},
    "a short key": {"response": lambda answer: pb.CompileResponse(module_key=b"short")},
    "a report of other passes": {
        "response": response(report=pb.CompileReport(pipeline="remove_dropout"))
    },
    "a report without end": {"response": response(report=pb.CompileReport(seconds=float("inf")))},
    "a negative duration": {"response": response(report=pb.CompileReport(seconds=-1.0))},
    "a constant of a terabyte": {"response": response(constants=[digest])},
    "constants of 2 GiB": {"response": response(constants=[half_a_gibibyte] * 4)},
    "bytes that are no answer": {"response": lambda answer: b"\xff" * 40},
    "bytes that are no graph": {"compiled": lambda compiled: b"\xff" * 40},
    "a graph that calls os.system": {"compiled": body(reaches_out)},
    "a graph of 300,000 nodes": {"compiled": body(grows)},
    "names of another graph": {"compiled": other_names},
    "no origins": {"compiled": no_origins},
    "empty chunks for ever": {"parts": many_parts},
    "parts in another order": {"parts": reversed_parts},
    "asks for a stranger's graph": {"before_compile": asks_for("blobs/" + "ab" * 32)},
    "asks for a path": {"before_compile": asks_for("blobs/../../etc/passwd")},
    "asks for values": {"before_compile": asks_for("values/0/0")},
    "asks again and again": {"before_compile": asks_again},
}


def outcomes(tier: RunningServer) -> dict[str, float]:
    found = metrics(tier.metrics_url)
    names = ("answered", "invalid", "failed", "values", "unreachable", "incompatible")
    return {
        name: total(found, "lazyfx_upstream_requests_total", what="compile", outcome=name)
        for name in names
    }


def compiled_right(tier: RunningServer, number: float) -> None:
    with lazyfx.connect(tier.address) as client:
        module = client.compile(graph_of(number))
        assert torch.equal(module(torch.ones(2)), torch.full((2,), 2 * number))
        assert module.cache.status == "miss"
        assert "os" not in module.code.split()


def test_an_honest_one_is_used(tier: RunningServer, liar: HostileServer) -> None:
    liar.reset()
    liar.lies.statement = told
    before = outcomes(tier)
    compiled_right(tier, 1.0)
    assert outcomes(tier)["answered"] == before["answered"] + 1


@pytest.mark.parametrize(("number", "name"), enumerate(LIES, 2), ids=LIES)
def test_a_lie_is_not_used(
    tier: RunningServer, liar: HostileServer, number: int, name: str
) -> None:
    liar.reset()
    liar.lies.statement = told
    for hook, lie in LIES[name].items():
        setattr(liar.lies, hook, lie)
    before = outcomes(tier)
    compiled_right(tier, float(number))
    after = outcomes(tier)
    assert after["answered"] == before["answered"]
    grew = {each for each in after if after[each] > before[each]}
    assert grew <= {"invalid", "failed", "values"}
    assert len(grew) == 1
    assert liar.uploaded <= 2_000  # no more than the graph, four times


def test_text_of_the_upstream_reaches_no_log_raw(tier: RunningServer) -> None:
    assert not any("\x1b" in line for line in tier.log)

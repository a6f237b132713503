"""Invalid requests are refused with the reason and the field, without side effects."""

from __future__ import annotations

import itertools
import time
from hashlib import sha256

import pytest
import torch
from harness import (
    CSE,
    DCE,
    artifact,
    compile_request,
    connected,
    graph_of,
    metrics,
    refused,
    request_of_body,
    total,
)

from lazyfx.shared import wire
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server(launch_for_file):
    return launch_for_file(
        "--workers", "1", "--max-nodes", "100", "--max-graph-bytes", "5000",
        "--max-passes", "8", "--max-rewrites", "4",
    )  # fmt: skip


@pytest.fixture
def stub(server):
    with connected(server.address) as stub:
        yield stub


def _settled_entries(stub) -> int:
    """Entries of the store once the last test's results, kept behind its answers, are in it."""
    entries = -1
    while (now := stub.GetStats(pb.GetStatsRequest()).store.entries) != entries:
        entries = now
        time.sleep(0.1)
    return entries


@pytest.fixture(autouse=True)
def unharmed(server, stub, rendered):
    """After each test: nothing was cached, the process is the same, and it still works."""
    entries = _settled_entries(stub)
    yield
    assert stub.GetStats(pb.GetStatsRequest()).store.entries == entries
    assert server.process.poll() is None
    good = stub.Compile(compile_request(graph_of(float(next(_numbers)) + 0.5), DCE))
    assert good.cache.status == pb.CACHE_STATUS_MISS
    assert total(metrics(server.metrics_url), "lazyfx_worker_restarts_total") == 0


@pytest.fixture
def request_of_dce():
    return compile_request(graph_of(float(next(_numbers))), DCE)


def spec(name: str, **options: pb.OptionValue) -> pb.PassSpec:
    return pb.PassSpec(
        name=name, options=[pb.PassOption(name=n, value=v) for n, v in options.items()]
    )


PASSES = {
    "a misspelt pass": (
        [spec("dead_code_eliminaton")],
        "passes[0]",
        ["dead_code_eliminaton", DCE],
    ),
    "an unknown pass behind a good one": (
        [spec(DCE), spec("../../evil")],
        "passes[1]",
        ["../../evil"],
    ),
    "an unknown option": (
        [spec("shape_propagation", evil=pb.OptionValue(boolean=True))],
        "passes[0].options.evil",
        ["evil"],
    ),
    "an option without a value": (
        [spec(DCE, keep_random=pb.OptionValue())],
        "passes[0].options",
        [],
    ),
    "rewrites for another pass": (
        [pb.PassSpec(name=DCE, rewrites=[pb.Rewrite()])],
        "passes[0].rewrites",
        [],
    ),
    "an empty name": ([spec("")], "passes[0]", []),
    "too many passes": ([spec(DCE)] * 9, "passes", ["8"]),
}


@pytest.mark.parametrize("case", PASSES)
def test_bad_passes(stub, request_of_dce, case):
    passes, field, words = PASSES[case]
    request_of_dce.ClearField("passes")
    request_of_dce.passes.extend(passes)
    refusal = refused(lambda: stub.Compile(request_of_dce))
    assert refusal.code == "INVALID_ARGUMENT"
    assert any(name.startswith(field) for name in refusal.fields), refusal.fields
    for word in words:
        assert word in refusal.message


def test_an_option_of_another_type_is_refused(stub, request_of_dce):
    wrong = {
        "bool": pb.OptionValue(text="yes"),
        "int": pb.OptionValue(text="5"),
        "float": pb.OptionValue(text="5.0"),
        "str": pb.OptionValue(integer=5),
        "list": pb.OptionValue(integer=5),
    }
    described = stub.ListPasses(pb.ListPassesRequest()).passes
    options = [(p.name, o) for p in described for o in p.options]
    assert options
    for name, option in options:
        kind = next(kind for kind in wrong if option.type.startswith(kind))
        request_of_dce.ClearField("passes")
        request_of_dce.passes.append(spec(name, **{option.name: wrong[kind]}))
        refusal = refused(lambda: stub.Compile(request_of_dce))
        assert refusal.code == "INVALID_ARGUMENT"
        assert f"passes[0].options.{option.name}" in refusal.fields
        assert kind in refusal.message


def test_an_option_given_twice(stub, request_of_dce):
    options = stub.ListPasses(pb.ListPassesRequest()).passes
    name, option = next((p.name, o) for p in options for o in p.options if o.type == "bool")
    twice = [pb.PassOption(name=option.name, value=pb.OptionValue(boolean=True))] * 2
    request_of_dce.ClearField("passes")
    request_of_dce.passes.append(pb.PassSpec(name=name, options=twice))
    refusal = refused(lambda: stub.Compile(request_of_dce))
    assert refusal.code == "INVALID_ARGUMENT"
    assert "twice" in refusal.message


def _flip(body: bytes) -> bytes:
    return bytes([body[0] ^ 0xFF]) + body[1:]


BODIES = {
    "empty": lambda body: b"",
    "garbage": lambda body: b"\xff" * 64,
    "text": lambda body: b"def forward(self, x): return x",
    "truncated": lambda body: body[:-3],
    "first half": lambda body: body[: len(body) // 2],
    "doubled": lambda body: body + body,
    "with an unknown field": lambda body: body + b"\xfa\x3f\x03abc",
    "flipped": _flip,
}


@pytest.mark.parametrize("case", BODIES)
def test_bad_bytes(stub, case):
    body = wire.encode(graph_of(float(next(_numbers)))).body
    refusal = refused(lambda: stub.Compile(request_of_body(BODIES[case](body), None, DCE)))
    assert refusal.code == "INVALID_ARGUMENT"
    assert any(field.startswith("graph") for field in refusal.fields)


def test_every_truncation_is_refused_or_is_another_graph(stub):
    """No prefix of a body is taken for the graph, and none harms the server."""
    body = wire.encode(graph_of(7777.0)).body
    for length in range(0, len(body), 5):
        refusal = refused(lambda: stub.Compile(request_of_body(body[:length], None)))  # noqa: B023
        assert refusal.code == "INVALID_ARGUMENT"


ENVELOPES = {
    "version 0": ({"format_version": 0}, "graph.format_version"),
    "version 2": ({"format_version": 2}, "graph.format_version"),
    "an unknown feature": ({"required_features": ["time_travel"]}, "graph.required_features"),
}


@pytest.mark.parametrize("case", ENVELOPES)
def test_bad_envelopes(stub, request_of_dce, case):
    changes, field = ENVELOPES[case]
    if "format_version" in changes:
        request_of_dce.graph.format_version = changes["format_version"]
    request_of_dce.graph.required_features.extend(changes.get("required_features", []))
    refusal = refused(lambda: stub.Compile(request_of_dce))
    assert refusal.code == "INVALID_ARGUMENT"
    assert field in refusal.fields
    for feature in changes.get("required_features", []):
        assert feature in refusal.message


def test_a_digest_of_other_bytes(stub, request_of_dce):
    request_of_dce.graph_digest.sha256 = bytes(32)
    refusal = refused(lambda: stub.Compile(request_of_dce))
    assert refusal.code == "INVALID_ARGUMENT"
    assert "graph_digest.sha256" in refusal.fields


@pytest.mark.parametrize("digest", [b"", b"abc", bytes(31), bytes(33)])
def test_a_digest_of_another_length(stub, request_of_dce, digest):
    request_of_dce.graph_digest.sha256 = digest
    refusal = refused(lambda: stub.Compile(request_of_dce))
    assert refusal.code == "INVALID_ARGUMENT"
    assert "graph_digest.sha256" in refusal.fields


def _chain(nodes: int) -> torch.fx.GraphModule:
    def f(x):
        for _ in range(nodes):
            x = x + 1
        return x

    return torch.fx.symbolic_trace(f)


def test_more_nodes_than_are_taken(stub):
    refusal = refused(lambda: stub.Compile(compile_request(_chain(150), DCE)))
    assert refusal.code == "INVALID_ARGUMENT"
    assert any(field.startswith("graph") for field in refusal.fields)
    assert "152" in refusal.message
    assert "100" in refusal.message
    assert "max_nodes" in refusal.message


def test_more_bytes_than_are_taken(stub):
    def f(x):
        for i in range(2000):
            x = x + i
        return x

    refusal = refused(lambda: stub.Compile(compile_request(torch.fx.symbolic_trace(f), DCE)))
    assert refusal.code == "INVALID_ARGUMENT"
    assert "graph.body" in refusal.fields
    assert "max_graph_bytes" in refusal.message


def _rewrite(stub, request, pattern: graph_pb2.Graph, count: int = 1):
    good = compile_request(torch.fx.symbolic_trace(lambda x: x * 2)).graph
    request.ClearField("passes")
    request.passes.append(
        pb.PassSpec(
            name="replace_pattern",
            rewrites=[pb.Rewrite(pattern=pattern, replacement=good) for _ in range(count)],
        )
    )
    return refused(lambda: stub.Compile(request))


def test_a_bad_rewrite_is_named_by_its_place(stub, request_of_dce):
    refusal = _rewrite(stub, request_of_dce, graph_pb2.Graph(format_version=1, body=b"\xff"))
    assert refusal.code == "INVALID_ARGUMENT"
    assert any(f.startswith("passes[0].rewrites[0].pattern") for f in refusal.fields)


def test_too_many_rewrites(stub, request_of_dce):
    good = compile_request(torch.fx.symbolic_trace(lambda x: x + 2)).graph
    refusal = _rewrite(stub, request_of_dce, good, count=5)
    assert refusal.code == "INVALID_ARGUMENT"
    assert "4" in refusal.message


def test_values_for_what_is_not_a_tensor(stub, request_of_dce):
    digest = graph_pb2.Digest(sha256=sha256(b"\0\0\0\0").digest(), size_bytes=4)
    request_of_dce.values.add(graph=0, attribute=0, content=digest)
    refusal = refused(lambda: stub.Compile(request_of_dce))
    assert refusal.missing == (f"blobs/{digest.sha256.hex()}",)


def _named(target: str) -> tuple[bytes, graph_pb2.Presentation]:
    """A graph that calls a function outside the table, under its caller's names."""
    module = graph_of(float(next(_numbers)), argument="speed")
    encoded = wire.encode(module)
    body = graph_pb2.GraphBody.FromString(encoded.body)
    for row in body.targets:
        if row.name.endswith(".mul"):
            row.name = target
    return body.SerializeToString(deterministic=True), encoded.presentation


def test_a_node_has_the_callers_name_in_an_error(stub):
    body, names = _named("os.system")
    refusal = refused(lambda: stub.Compile(request_of_body(body, names, DCE, CSE)))
    assert refusal.code == "INVALID_ARGUMENT"
    assert "os.system" in refusal.message
    assert "'mul'" in refusal.message
    assert any(field.startswith("graph") for field in refusal.fields)
    assert "calls[" in refusal.message


def test_without_names_a_node_is_identified_by_its_number(stub):
    body, _ = _named("os.system")
    refusal = refused(lambda: stub.Compile(request_of_body(body, None, DCE)))
    assert refusal.code == "INVALID_ARGUMENT"
    assert "node 1" in refusal.message


NAMES = {
    "a keyword": "class",
    "the module argument": "self",
    "a module of the generated code": "torch",
    "code": "x): pass\nimport os #",
    "empty": "",
    "a digit first": "1x",
    "another script's digit": "y_\u0663",
    "a full-width letter": "\uff58",
    "a megabyte": "a" * 2**20,
}


@pytest.mark.parametrize("case", NAMES)
def test_names_that_source_cannot_hold(stub, case):
    encoded = wire.encode(graph_of(float(next(_numbers))))
    names = encoded.presentation
    names.graphs[0].stems[0] = NAMES[case]
    refusal = refused(lambda: stub.Compile(request_of_body(encoded.body, names, DCE)))
    assert refusal.code == "INVALID_ARGUMENT"
    assert any(f.startswith("graph.presentation") for f in refusal.fields), refusal.fields
    assert len(refusal.message) < 2000


@pytest.fixture(scope="module")
def rendered(server):
    """The key of a module whose code has been rendered under canonical names."""
    with connected(server.address) as stub:
        request = request_of_body(wire.encode(graph_of(4321.0)).body, None, DCE)
        key = stub.Compile(request).module_key
        assert b"n0" in artifact(stub, key, pb.ARTIFACT_KIND_CODE).data
        return key


@pytest.mark.parametrize("case", NAMES)
def test_names_that_source_cannot_hold_render_nothing(rendered, stub, case):
    encoded = wire.encode(graph_of(4321.0))
    key = rendered
    names = encoded.presentation
    names.graphs[0].stems[0] = NAMES[case]
    for kind in (pb.ARTIFACT_KIND_CODE, pb.ARTIFACT_KIND_PICKLE, pb.ARTIFACT_KIND_PICTURE):
        refusal = refused(lambda: artifact(stub, key, kind, names))  # noqa: B023
        assert refusal.code == "INVALID_ARGUMENT"
        assert any(f.startswith("presentation") for f in refusal.fields), refusal.fields


@pytest.mark.parametrize("change", ["too few", "too many", "doubled", "out of range"])
def test_names_that_do_not_fit_the_graph(stub, change):
    encoded = wire.encode(graph_of(float(next(_numbers))))
    names = encoded.presentation
    row = names.graphs[0]
    if change == "too few":
        del row.stem[-1], row.suffix[-1]
    elif change == "too many":
        row.stem.append(0)
        row.suffix.append(77)
    elif change == "doubled":
        row.stem[1], row.suffix[1] = row.stem[0], row.suffix[0]
    else:
        row.stem[0] = 1000
    refusal = refused(lambda: stub.Compile(request_of_body(encoded.body, names, DCE)))
    assert refusal.code == "INVALID_ARGUMENT"
    assert any(f.startswith("graph.presentation") for f in refusal.fields), refusal.fields

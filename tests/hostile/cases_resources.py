"""Hostile cases of resources: sizes, depths, bombs, loops."""

from __future__ import annotations

import json
from typing import Any

import grpc
import torch
from harness import (
    DCE,
    PATIENCE,
    Refusal,
    compile_request,
    connected,
    graph_of,
    metrics,
    refused,
)
from raw_graphs import expanded
from sending import (
    FUNCTION,
    must_refuse,
    must_refuse_graph,
    returning,
    small,
    unsayable,
)
from watching import Watched

from lazyfx.shared import wire
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2


def groups(watched: Watched, case: Any) -> None:
    repeat = case["payload"]["$repeat"]
    must_refuse(watched, [bytes.fromhex(repeat["value"]) * repeat["count"]])


def doubled_field(watched: Watched, case: Any) -> None:
    body = wire.encode(graph_of(3.5)).body
    call = graph_pb2.GraphBody.FromString(body).calls[1]
    once = call.SerializeToString(deterministic=True)
    field = graph_pb2.Call(opcode=call.opcode).SerializeToString()
    twice = field + once
    assert len(twice) < 128
    row = b"\x42" + bytes([len(once)]) + once
    assert body.count(row) == 1
    must_refuse(watched, [body.replace(row, b"\x42" + bytes([len(twice)]) + twice)])


def deep_nesting(watched: Watched, case: Any) -> None:
    depth = case["payload"]["$nest"]["depth"]
    graph = small()
    graph.node("call_function", target=(FUNCTION, "torch.neg"), args=["@@"])
    body = returning(graph, 1).serialized()
    text = graph_pb2.Argument(text=0).SerializeToString()
    nested = graph_pb2.Argument(none=graph_pb2.Empty()).SerializeToString()
    for _ in range(depth):
        items = b"\x0a" + varint(len(nested)) + nested
        nested = b"\x42" + varint(len(items)) + items
    arguments = b"\x1a" + varint(len(text)) + text
    assert body.count(arguments) == 1
    call = graph.body.calls[1].SerializeToString(deterministic=True)
    longer = call.replace(arguments, b"\x1a" + varint(len(nested)) + nested)
    row = b"\x42" + varint(len(call)) + call
    must_refuse(watched, [body.replace(row, b"\x42" + varint(len(longer)) + longer)])


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def names_that_count(watched: Watched, case: Any) -> None:
    """Names that make a naive renamer quadratic are used as they are."""
    graph = small()
    names = [f"x_{i}" for i in range(1, 5001)] + [f"x_0{i}" for i in range(1, 501)]
    del graph.given.stems[:], graph.given.stem[:], graph.given.suffix[:]
    call = graph_pb2.Call(opcode=graph_pb2.OPCODE_CALL_FUNCTION, target=1)
    graph.target(FUNCTION, "torch.neg")
    call.args.add(operand=graph_pb2.Empty())
    graph.body.calls.add().CopyFrom(call)
    graph.columns.calls.extend([1] * len(names))
    graph.columns.operands.extend([1] * len(names))
    graph.body.calls.add(opcode=graph_pb2.OPCODE_OUTPUT).args.add(operand=graph_pb2.Empty())
    graph.columns.calls.append(2)
    graph.columns.operands.append(1)
    from lazyfx.shared.wire.names import write_names

    write_names(["x", *names, "output"], graph.given)
    graph.finished()
    outcome = watched.ask(graph.serialized(), graph.names, DCE)
    assert isinstance(outcome, pb.CompileResponse), outcome


def string_bomb(watched: Watched, case: Any) -> None:
    """A long string that many nodes print, in one literal or in many calls."""
    text = "a" * 2**20
    graph = small()
    references = [graph_pb2.Argument(text=graph.text(text)) for _ in range(10_000)]
    graph.node("call_function", target=(FUNCTION, "torch._assert"), args=[{"$node": 0}, references])
    must_refuse_graph(watched, returning(graph, 0))
    many = small()
    many.node("call_function", target=(FUNCTION, "torch._assert"), args=[{"$node": 0}, [text]])
    again = small()
    again.node("call_function", target=(FUNCTION, "torch._assert"), args=[True, text])
    again.columns.calls.extend([1] * 20_000)
    again.given.stem.extend([0] * 20_000)
    again.given.suffix.extend(range(1, 20_001))
    again._node += 20_000
    must_refuse_graph(watched, returning(again, 0))


def long_names(watched: Watched, case: Any) -> None:
    graph = small()
    graph.node("call_function", target=(FUNCTION, "torch.neg"), args=[{"$node": 0}])
    graph.columns.calls.extend([1] * 100_000)
    graph.columns.operands.extend([1] * 100_000)
    graph.given.stems[1] = "a" * 1000
    graph.given.stem.extend([1] * 100_000)
    graph.given.suffix.extend(range(1, 100_001))
    graph._node += 100_000
    must_refuse_graph(watched, returning(graph, 1))


def long_path(watched: Watched, case: Any) -> None:
    graph = small()
    graph.node("get_attr", attribute=graph.tensor_attribute("a." * 100_000 + "a"))
    must_refuse_graph(watched, returning(graph, 1))


def power_bomb(watched: Watched, case: Any) -> None:
    Op = graph_pb2
    graph = small()
    add = graph.body.expressions.add
    add(operator=Op.SYMBOLIC_OPERATOR_INTEGER, integer=2)
    add(operator=Op.SYMBOLIC_OPERATOR_INTEGER, integer=10)
    add(operator=Op.SYMBOLIC_OPERATOR_POWER, operands=[1, 1])
    add(operator=Op.SYMBOLIC_OPERATOR_POWER, operands=[0, 2])
    graph.node(
        "call_method", target=(Op.TARGET_KIND_METHOD, "view"),
        args=[{"$node": 0}, Op.Argument(expression=3)],
    )  # fmt: skip
    must_refuse_graph(watched, returning(graph, 1), "shape_propagation")


def expression_as_text(watched: Watched, case: Any) -> None:
    unsayable(watched, case)
    graph = small()
    text = expanded(case["payload"]["expr"], {"MARKER": str(watched.marker)})
    graph.node(
        "call_method", target=(graph_pb2.TARGET_KIND_METHOD, "view"), args=[{"$node": 0}, text]
    )
    watched.ask(returning(graph, 1).serialized(), graph.names, "shape_propagation")


def compressed_body(watched: Watched, case: Any) -> None:
    header = bytes.fromhex("28b52ffd")
    must_refuse(watched, [header + bytes(8000), header + b"\xe0" + bytes(7) + b"\x20\1\0\0"])


def gzip_bomb(watched: Watched, case: Any) -> None:
    request = compile_request(graph_of(1.25))
    request.graph.body = bytes(100 * 2**20)
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(watched.server.address, options=options) as channel:
        stub = pb_stub(channel)
        refusal = refused(
            lambda: stub.Compile(request, compression=grpc.Compression.Gzip, timeout=PATIENCE)
        )
    assert refusal.code == "RESOURCE_EXHAUSTED"


def pb_stub(channel: grpc.Channel) -> Any:
    from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub

    return GraphCompilerStub(channel)


def rewrite_that_feeds_itself(watched: Watched, case: Any) -> None:
    module = torch.fx.symbolic_trace(lambda x: torch.neg(torch.neg(x)))
    pattern = torch.fx.symbolic_trace(lambda x: torch.neg(x))
    replacement = torch.fx.symbolic_trace(lambda x: torch.neg(torch.neg(torch.neg(x))))
    request = compile_request(module, "replace_pattern")
    request.passes[0].rewrites.add(
        pattern=wire.encode(pattern).message(), replacement=wire.encode(replacement).message()
    )
    outcome = watched.send(request)
    if isinstance(outcome, Refusal):
        assert outcome.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"), outcome
    else:
        assert outcome.report.nodes_after < 100


def many_passes(watched: Watched, case: Any) -> None:
    entries = watched.entries()
    outcome = watched.send(compile_request(graph_of(1.25), *[DCE] * 10_000))
    assert isinstance(outcome, Refusal)
    assert outcome.code == "INVALID_ARGUMENT"
    assert "passes" in outcome.fields
    assert watched.entries() == entries


def odd_pass(watched: Watched, case: Any) -> None:
    payload = case["payload"]
    entries = watched.entries()
    for name in (payload["pass"], "os.system", "__class__", "", "a" * 10**6, DCE):
        request = compile_request(graph_of(1.25), name)
        for option, value in payload["options"].items():
            request.passes[0].options.add(name=option, value=pb.OptionValue(text=value))
        outcome = watched.send(request)
        assert isinstance(outcome, Refusal)
        assert outcome.code == "INVALID_ARGUMENT"
        assert outcome.fields
        assert len(outcome.message) < 3000
    assert watched.entries() == entries


def new_labels(watched: Watched, case: Any) -> None:
    for i in range(20):
        watched.send(compile_request(graph_of(1.25), f"random_{i}"))
    text = json.dumps([str(key) for key in metrics(watched.server.metrics_url)])
    assert "random_" not in text


def great_metadata(watched: Watched, case: Any) -> None:
    with connected(watched.server.address) as stub:
        metadata = [("x-large", "a" * case["payload"]["metadata_bytes"])]
        refusal = refused(lambda: stub.GetStats(pb.GetStatsRequest(), metadata=metadata))
    assert refusal.code == "RESOURCE_EXHAUSTED"
